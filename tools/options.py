"""Options several commands share, and the kinds of values they take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """``click.FloatRange``, which lets NaN pass, without it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails with one line for what is out of range, infinite or no number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


class ImageSize(click.ParamType):
    """``HEIGHTxWIDTH`` in pixels → (height, width)."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Fails with one line that shows the form."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,4})[x×](\d{1,4})", str(value))
        if found is None or 0 in (int(found[1]), int(found[2])):
            self.fail(f"{value!r} is not HEIGHTxWIDTH, such as 96x128", param, ctx)
        return int(found[1]), int(found[2])


class Indices(click.ParamType):
    """``0-15,18`` → [0, …, 15, 18]."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Fails with one line that shows the form."""
        if isinstance(value, list):
            return value
        out: list[int] = []
        for part in str(value).split(","):
            found = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", part.strip())
            last = int(found[2] or found[1]) if found else -1
            if found is None or last < int(found[1]) or last - int(found[1]) > 1_000_000:
                self.fail(f"{value!r} is not a list of episodes, such as 0-15,18", param, ctx)
            out += range(int(found[1]), last + 1)
        return out


def store_option(command: F) -> F:
    """``--store DIR``, required."""
    return click.option("--store", type=PATH, required=True, help="The episode store.")(command)


def keys_option(command: F) -> F:
    """``--keys DIR``."""
    return click.option(
        "--keys", type=PATH, help="Directory of the signing key [default: ~/.config/ratchet/keys]."
    )(command)


def trust_option(command: F) -> F:
    """``--trust DIR``."""
    return click.option(
        "--trust", type=PATH, help="Directory of trusted public keys [default: the key directory]."
    )(command)


def server_identity_option(command: F) -> F:
    """``--tls DIR``."""
    return click.option(
        "--tls", type=PATH, help="What to show the server: a directory that `ratchet keys issue` made."
    )(command)


def registry_options(command: F) -> F:
    """``--registry DIR`` and ``--name NAME``."""
    command = click.option(
        "--registry", type=PATH, help="The registry [default: ~/.local/share/ratchet/NAME]."
    )(command)
    return click.option(
        "--name", default="policy", show_default=True, help="Name of the policy through all its versions."
    )(command)


def json_flag(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
