"""What benchmarks share: percentiles, and figures printed as JSON or as a table."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tools.console import show_fields, show_json
from tools.errors import UsageError


def quantile(values: Sequence[float], percent: float) -> float:
    """The ``percent`` percentile of ``values``, rounded to four digits after the point; 0 of nothing.

    The smallest value that at least so many per cent do not exceed (inverse of the empirical distribution): a
    tail figure is one that was measured, never one between two.
    """
    if not len(values):
        return 0.0
    return round(float(np.percentile(values, percent, method="inverted_cdf")), 4)


@contextmanager
def work_folder(prefix: str, where: Path | None) -> Iterator[Path]:
    """A folder below ``where`` that is gone afterwards. Raises UsageError when none can be made there."""
    try:
        folder = tempfile.mkdtemp(prefix=prefix, dir=where)
    except OSError as error:
        raise UsageError(f"--dir {where}: no folder can be made there ({error.strerror})") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """A benchmark's figures on stdout; nested ones are flattened to ``a.b`` for a person."""
    if as_json:
        show_json(figures)
    else:
        show_fields(dict(_flat(figures)))


def _flat(figures: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", value))
    return rows
