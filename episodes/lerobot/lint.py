"""What is wrong with a set of episodes: LeRobot v2.1, v3.0, or a Ratchet store.

Errors are what training or LeRobot would trip over; warnings are what a person should have a look at.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from episodes.errors import StoreError
from episodes.lerobot.lint_views import (
    Camera,
    Numbers,
    View,
    action_columns,
    column_name,
    count,
    set_faults,
    views,
)
from episodes.lerobot.plan import ON_GRID_S

Severity = Literal["error", "warning"]
Limits = Mapping[str, tuple[float, float]]
_GAP = 1.5  # periods
_BLACK = 10.0  # of 255
_FROZEN = 5  # same pictures in a row while the arm moves
_SAME = 1  # of 255, at the size pictures are looked at
_STILL = 1e-3  # of a column's range: less than this is no movement
_NOISE = 5e-3  # of the range asked for: a joint that moves less, to and fro, stands still
_ASKED = 1e-2  # a smaller range asked for (of the largest value, or of 1) is none that noise can be told from
_TO_AND_FRO = 0.5  # of the deviation: steps of noise are 1.4 of it, those of a movement a fraction


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: which check, where, in words."""

    check: str
    severity: Severity
    episode: str
    text: str


@dataclass(slots=True)
class LintReport:
    """Everything found; ``ok`` when there is no error."""

    path: str
    episodes: int = 0
    rows: int = 0
    pictures: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No error; there may be warnings."""
        return not any(f.severity == "error" for f in self.findings)

    def counts(self) -> dict[str, int]:
        """How many findings of each check."""
        return dict(sorted(Counter(f"{f.severity} {f.check}" for f in self.findings).items()))


def lint(
    path: Path | str,
    *,
    limits: Limits | None = None,
    pictures: bool = True,
    where: str = "true",
    progress: Callable[[int, int], None] | None = None,
) -> LintReport:
    """Look at every episode of the set or store in ``path``.

    ``limits``: lowest and highest value of an action by column name, in its unit. Without ``pictures``
    nothing is decoded. ``where`` is for stores: a LeRobot set has no catalogue. ``progress`` gets the
    episodes looked at and how many there are. Raises ImportRefusedError, StoreError when it cannot be
    opened at all, or when no action has a column of a name in ``limits``.
    """
    if where != "true" and not (Path(path) / "store.json").exists():
        raise StoreError(
            f"{path} is no episode store: there is no catalogue for a condition",
            "leave --where out, or import the set first",
        )
    if limits:
        _refuse_unknown(limits, action_columns(Path(path), where), path)
    total = 0 if progress is None else count(Path(path), where)
    report = LintReport(str(path))
    report.findings += [Finding(c, _severity(s), "", t) for c, s, t in set_faults(Path(path))]
    for view in views(Path(path), where):
        report.episodes += 1
        report.rows += max((len(s.values) for s in view.streams.values()), default=0)
        found = [(c, s, t) for c, s, t in view.faults]
        for check in (_times, _streams, _stuck):
            found += check(view)
        found += _limits(view, limits or {})
        if pictures:
            for key, camera in view.cameras.items():
                found += _pictures(view, key, camera)
                report.pictures += camera.frames
        report.findings += [Finding(c, _severity(s), view.name, t) for c, s, t in found]
        if progress is not None:
            progress(report.episodes, total)
    return report


def _refuse_unknown(limits: Limits, known: list[str], path: Path | str) -> None:
    for name in limits:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns: {', '.join(known) or 'none'}"
            raise StoreError(f"no action in {path} has a column {name!r}", hint)


_Found = Iterator[tuple[str, str, str]]


def _severity(text: str) -> Severity:
    return "error" if text == "error" else "warning"


def _times(view: View) -> _Found:
    """Drift and gaps. A LeRobot timestamp off the grid makes LeRobot refuse the row or show another frame."""
    period = 1 / view.fps
    if view.grid_s is not None and len(view.grid_s):
        if not np.isfinite(view.grid_s).all():
            yield "timestamps", "error", "timestamps are not finite"
            return
        off = np.abs(view.grid_s - np.arange(len(view.grid_s)) * period)
        if off.max() > ON_GRID_S:
            row = int(np.argmax(off > ON_GRID_S))
            text = f"timestamps drift up to {off.max():.3f} s from index/fps, from row {row} on"
            yield "drift", "error", text + ": LeRobot shows other frames, or refuses the row"
        yield from _gaps("timestamp", view.grid_s, period, "error")
    seen: set[bytes] = set()
    for name, stream in view.streams.items():
        if view.grid_s is None or not np.array_equal(stream.times_s, np.arange(len(stream.values)) * period):
            if (identity := stream.times_s.tobytes()) in seen:
                continue  # streams of one clock
            seen.add(identity)
            own = float(np.median(np.diff(stream.times_s))) if len(stream.times_s) > 2 else period
            yield from _gaps(f"capture of {name}", stream.times_s, max(own, 1e-6), "warning")
    for key, camera in view.cameras.items():
        if view.grid_s is None and len(camera.times_s) > 2:
            own = float(np.median(np.diff(camera.times_s)))
            yield from _gaps(f"camera {key}", camera.times_s, max(own, 1e-6), "warning")


def _gaps(what: str, times: npt.NDArray[np.float64], period: float, back: str) -> _Found:
    steps = np.diff(times)
    if (stands := int((steps <= 0).sum())) > 0:
        yield "timestamps", back, f"{what}: time does not advance between {stands} pairs of rows"
    if (gaps := int((steps > _GAP * period).sum())) > 0:
        row = int(np.argmax(steps))
        text = (
            f"{what}: {gaps} gaps longer than {_GAP} periods, the longest {steps[row]:.3f} s after row {row}"
        )
        yield "gaps", "warning", text


def _streams(view: View) -> _Found:
    for name, stream in view.streams.items():
        if stream.values.dtype.kind == "f":
            bad = ~np.isfinite(stream.values)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                text = (
                    f"{name} is not finite in {int(bad.any(axis=1).sum())} rows, first row {row} [{column}]"
                )
                yield "missing", "error", text
        elif stream.values.dtype.kind not in "iub":
            yield "dtype", "error", f"{name} is {stream.values.dtype}, no numbers"


def _stuck(view: View) -> _Found:
    """A joint whose measured value does not change, but for noise, although it was told to move."""
    state, action = view.streams.get("observation.state"), view.streams.get("action")
    if state is None or action is None or len(state.values) < 10:
        return
    for column, (told, how) in enumerate(_pairs(state, action)):
        if told is None:
            continue
        seen = state.values[:, column].astype(np.float64)
        asked = action.values[:, told].astype(np.float64)
        if _stands(seen, float(np.ptp(asked)), max(1.0, float(np.abs(asked).max()))):
            name = state.names[column] if column < len(state.names) else f"[{column}]"
            noise = f" (within {np.ptp(seen):.2g})" if np.ptp(seen) else ""
            text = f"{name} stays at {seen[0]:g}{noise} while its action moves by {np.ptp(asked):g} ({how})"
            yield "stuck", "warning", text


def _stands(seen: npt.NDArray[np.float64], asked: float, scale: float) -> bool:
    """Whether a measured column is one value and noise although ``asked``, a range, is a movement.

    Noise: its range is below ``_NOISE`` of the range asked for, and its steps are as large as noise's (a
    column in another unit may be small, but moves smoothly).
    """
    if np.ptp(seen) == 0:
        return asked > _STILL * scale
    steps = float(np.std(np.diff(seen)))
    small = asked > _ASKED * scale and np.ptp(seen) < _NOISE * asked
    return bool(small and steps > _TO_AND_FRO * float(np.std(seen)))


def _pairs(state: Numbers, action: Numbers) -> list[tuple[int | None, str]]:
    """For each measured column the commanded one: by name, or by place when there are as many."""
    base = [n.rsplit(".", 1)[0].removesuffix("_vel").removesuffix("_pos") for n in action.names]
    out: list[tuple[int | None, str]] = []
    for column in range(state.values.shape[1]):
        name = state.names[column] if column < len(state.names) else ""
        stem = name.rsplit(".", 1)[0].removesuffix("_vel").removesuffix("_pos")
        if name and stem in base:
            out.append((base.index(stem), "same name"))
        elif not name and action.values.shape == state.values.shape:
            out.append((column, "same place"))
        else:
            out.append((None, ""))
    return out


def _limits(view: View, limits: Limits) -> _Found:
    action = view.streams.get("action")
    if action is None:
        return
    for column in range(action.values.shape[1]):
        name = column_name(action.names, column)
        low, high = limits.get(name, (-7.0, 7.0) if action.unit == "rad" else (-np.inf, np.inf))
        values = action.values[:, column]
        outside = (values < low) | (values > high)
        if outside.any():
            row = int(np.argmax(outside))
            text = f"action {name} is outside {low:g}…{high:g} in {int(outside.sum())} rows"
            text += f", the first in row {row}: {values[row]:g}"
            yield "limits", "error", text


def _pictures(view: View, key: str, camera: Camera) -> _Found:
    """Black, and repeated pictures that are not marked as such; frozen while the arm moves."""
    moving = _moving(view, camera)
    black: list[int] = []
    same: list[int] = []
    run = longest = at = 0
    before: npt.NDArray[np.uint8] | None = None
    count = 0
    try:
        for row, picture in enumerate(camera.pictures()):
            count += 1
            if picture.mean() < _BLACK and picture.std() < _BLACK:
                black.append(row)
            if before is not None and _same(before, picture) and not camera.marked[row]:
                same.append(row)
                run = run + 1 if moving[row] else 0
                if run > longest:
                    longest, at = run, row
            else:
                run = 0
            before = picture
    except StoreError as error:
        yield "video", "error", f"{key}: {error}"
    if black:
        yield "black", "error", f"{key}: {len(black)} black pictures, the first in row {black[0]}"
    if same:
        yield (
            "repeated",
            "warning",
            f"{key}: {len(same)} pictures equal the one before, the first in row {same[0]}",
        )
    if longest >= _FROZEN:
        text = f"{key}: the picture stands still for {longest + 1} rows up to row {at} while the arm moves"
        yield "frozen", "error", text


def _same(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> bool:
    """Equal but for what encoding does to a picture that did not change."""
    return bool(np.abs(one.astype(np.int16) - two).max() <= _SAME)


def _moving(view: View, camera: Camera) -> npt.NDArray[np.bool_]:
    """For each picture, whether the measured joints changed since the one before."""
    state = view.streams.get("observation.state")
    out = np.zeros(max(camera.frames, 1), bool)
    if state is None or len(state.values) < 2 or not camera.frames:
        return out
    rows = np.clip(np.searchsorted(state.times_s, camera.times_s, side="right") - 1, 0, len(state.values) - 1)
    if view.grid_s is not None:
        rows = np.arange(camera.frames).clip(max=len(state.values) - 1)
    values = state.values[rows].astype(np.float64)
    span = np.maximum(np.ptp(state.values.astype(np.float64), axis=0), 1e-6)
    out[1:] = (np.abs(np.diff(values, axis=0)) > 10 * _STILL * span).any(axis=1)
    return out
