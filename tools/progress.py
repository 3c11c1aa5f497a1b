"""Progress on stderr: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0

Update = Callable[..., None]
"""Called as ``update(done)``, with a note of a few words such as the loss, and a total that has changed:
``update(done, note, total)``."""


@contextmanager
def bar(label: str, total: int, unit: str = "") -> Iterator[Update]:
    """Show ``label`` with how much of ``total`` is done, the rate in ``unit`` per second and what is left.

    The yielded function may be called as often as one likes. Nothing goes to stdout.
    """
    console = Console(file=sys.stderr)
    with _terminal(console, label, total, unit) if console.is_terminal else _lines(label, total, unit) as up:
        yield up


@contextmanager
def _terminal(console: Console, label: str, total: int, unit: str) -> Iterator[Update]:
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, note="", rate="")
        meter = _Meter(unit)

        def update(done: int, note: str = "", total: int | None = None) -> None:
            progress.update(task, completed=done, note=note, rate=meter.rate(done), total=total)

        yield update


@contextmanager
def _lines(label: str, total: int, unit: str) -> Iterator[Update]:
    meter = _Meter(unit)
    said, of = time.monotonic(), total

    def update(done: int, note: str = "", total: int | None = None) -> None:
        nonlocal said, of
        of = total or of
        now = time.monotonic()
        rate = meter.rate(done)
        if now - said >= _LINE_EVERY_S:
            said = now
            words = [f"{label}: {done}/{of}", rate, note, meter.left(done, of)]
            sys.stderr.write(", ".join(word for word in words if word) + "\n")
            sys.stderr.flush()

    yield update


class _Meter:
    """The rate since the first report: what was done before (a resumed run) does not count."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[int, float] | None = None

    def rate(self, done: int) -> str:
        """Such as ``12.3 steps/s``; empty without a unit or before there is a rate."""
        per_second = self._per_second(done)
        return f"{per_second:.1f} {self._unit}/s" if self._unit and per_second else ""

    def left(self, done: int, total: int) -> str:
        """Such as ``about 40 s left``; empty before there is a rate."""
        per_second = self._per_second(done)
        return f"about {(total - done) / per_second:.0f} s left" if per_second else ""

    def _per_second(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
            return 0.0
        before, since = self._first
        return (done - before) / (now - since) if now > since else 0.0
