"""What `ratchet doctor` finds: a verdict on one thing, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty when there is nothing to do."""

    what: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def ok(what: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(what, "ok", detail)


def warning(what: str, detail: str, remedy: str) -> Finding:
    """The robot runs without it, but not as well, or without some of its parts."""
    return Finding(what, "warning", detail, remedy)


def problem(what: str, detail: str, remedy: str) -> Finding:
    """The robot does not run like this."""
    return Finding(what, "problem", detail, remedy)


def failed(what: str, error: Exception) -> Finding:
    """A problem in the words of one of our errors."""
    return Finding(what, "problem", str(getattr(error, "what", error)), str(getattr(error, "remedy", "")))
