"""Samples for Prometheus, and its text format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One Prometheus sample. ``name`` without the ``ratchet_`` prefix, in base units."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """Samples in the text exposition format 0.0.4, grouped by name as it demands."""
    families: dict[str, list[Metric]] = {}
    for metric in metrics:
        families.setdefault(f"ratchet_{metric.name}", []).append(metric)
    lines = []
    for name, samples in families.items():
        lines.append(f"# HELP {name} {_escape(samples[0].help, quote=False)}")
        lines.append(f"# TYPE {name} {samples[0].kind}")
        for sample in samples:
            labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels.items())
            lines.append(
                f"{name}{{{labels}}} {_number(sample.value)}" if labels else f"{name} {_number(sample.value)}"
            )
    return "\n".join(lines) + "\n"


def _escape(value: str, *, quote: bool = True) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if quote else escaped


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
