"""What a conversion did, proved from what it wrote: the new files are read back and compared.

Rows are read a group at a time. Frames are counted in the index that
libavformat makes of a file, not in its header.
"""

from __future__ import annotations

import time
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds, v30
from episodes.lerobot.metadata import Feature
from episodes.lerobot.plan import OutFile
from episodes.lerobot.rows import Recipe, Written
from episodes.lerobot.stats import BASIC, Stats, Total, number_stats
from episodes.lerobot.tables import to_numbers

_DISTRIBUTION = ("min", "max", "mean", "std")
OUTLIER_SIGMA = 8.0
"""A value this many standard deviations from its feature's mean counts as an outlier."""


@dataclass(slots=True)
class FeatureCheck:
    """One feature before and after: min, max, mean and std over all its columns' rows, the largest difference
    of any statistic of any episode, values missing (NaN), and outliers."""

    before: dict[str, list[float]] = field(default_factory=dict)
    after: dict[str, list[float]] = field(default_factory=dict)
    max_difference: float = 0.0
    missing: int = 0
    outliers: int = 0
    outlier_first: str = ""


@dataclass(frozen=True, slots=True)
class VideoCheck:
    """One video file that was written: frames that belong to rows, its size, what is wrong, s it took."""

    key: str
    frames: int
    size: str
    errors: list[str]
    seconds: float


@dataclass(slots=True)
class ConversionReport:
    """``episodes`` maps source episode → new episode. ``errors`` is what is wrong with the result (it is
    then not published), ``repairs`` what was read or written differently than it stood in the source,
    ``episode_notes`` per source episode what is odd about it, ``checked_s`` the time checking took, s."""

    source: str
    target: str
    episodes: dict[int, int] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    resumed: bool = False
    files: int = 0
    files_resumed: int = 0
    rows: int = 0
    checked_s: float = 0.0
    frames: dict[str, int] = field(default_factory=dict)
    timestamp_error_s: float = 0.0
    features: dict[str, FeatureCheck] = field(default_factory=dict)
    dimensions: dict[str, str] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    episode_notes: dict[int, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def take(self, check: VideoCheck) -> None:
        """Take in what was found about one video file."""
        self.frames[check.key] = self.frames.get(check.key, 0) + check.frames
        self.dimensions[check.key] = check.size
        self.errors += check.errors
        self.checked_s += check.seconds

    def refuse_when_wrong(self) -> None:
        """Raises ImportRefusedError with the first error."""
        if self.errors:
            raise ImportRefusedError(
                f"the conversion of {self.source} failed its own checks: {self.errors[0]}"
                + (f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""),
                "nothing was published",
            )


def check_rows(
    report: ConversionReport, recipe: Recipe, staged: Path, data: list[OutFile], records: Iterator[Written]
) -> None:
    """Read all rows back and compare: fills ``report`` and its ``errors``."""
    totals = Total(), Total()
    for file in data:
        path = staged / v30.DATA_PATH.format(**v30.place(file.number))
        with bounds.parquet(path) as opened:
            _check_schema(report, recipe, opened.schema_arrow, path)
            batches = _episodes(opened, [p.length for p in file.parts])
            for table, _ in zip(batches, file.parts, strict=True):
                _check_rows(report, recipe, table, next(records), totals)
    before, after = (t.result() for t in totals)
    for key, found in report.features.items():
        for side, stats in ((found.before, before[key]), (found.after, after[key])):
            side |= {n: np.asarray(stats[n], float).ravel().tolist() for n in _DISTRIBUTION}


def check_video(recipe: Recipe, file: OutFile, path: Path) -> VideoCheck:
    """Look at a video that was written: libavformat has to find every frame at its time."""
    started = time.perf_counter()
    name = f"{path.name} of {file.key}"
    errors = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = _frame_times(container, stream, recipe.fps)
        height, width = stream.height, stream.width
    last = file.parts[-1]
    expected = last.first_frame + last.length
    if len(times) < expected:
        errors.append(f"{name} has {len(times)} frames, not {expected}")
    elif (off := np.abs(times - np.arange(len(times)) / recipe.fps).max()) > 1e-4:
        errors.append(f"frames of {name} are up to {off:.4f} s off their time")
    shape = recipe.features[file.key].shape[:2]
    if (height, width) != shape:
        errors.append(f"{name} is {height}×{width}, not {shape[0]}×{shape[1]}")
    taken = time.perf_counter() - started
    return VideoCheck(file.key, sum(p.length for p in file.parts), f"{height}x{width}", errors, taken)


def _frame_times(container: Any, stream: Any, fps: int) -> npt.NDArray[np.float64]:
    """When each frame is shown, s. Where decoding runs ahead of showing, the packets have to be read."""
    tick = float(stream.time_base or 0)
    entries = stream.index_entries
    times = np.fromiter((e.timestamp for e in entries), np.float64, len(entries)) * tick
    if len(times) and not stream.codec_context.has_b_frames and times[0] == 0:
        return times
    shown = array("d")
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            shown.append(packet.pts * tick)
    return np.sort(shown)


def _check_schema(report: ConversionReport, recipe: Recipe, schema: Any, path: Path) -> None:
    wanted = {k for k, f in recipe.features.items() if f.dtype != "video"} | set(v30.default_features())
    if set(schema.names) != wanted:
        differing = ", ".join(sorted(set(schema.names) ^ wanted))
        report.errors.append(f"{path.name} does not have the columns info.json says: {differing}")
    for key in wanted - set(v30.default_features()):
        report.dimensions[key] = "x".join(map(str, recipe.features[key].shape))


def _episodes(file: Any, lengths: list[int]) -> Iterator[Any]:
    """The rows of each episode; as many groups in memory as one episode spans."""
    groups = file.iter_batches(batch_size=8192)
    held: list[Any] = []
    for length in lengths:
        while sum(len(b) for b in held) < length:
            held.append(next(groups))
        joined = _join(held)
        yield joined.slice(0, length)
        held = [joined.slice(length)] if len(joined) > length else []


def _join(batches: list[Any]) -> Any:
    return pa.concat_tables(
        [pa.Table.from_batches([b]) if isinstance(b, pa.RecordBatch) else b for b in batches]
    )


def _check_rows(
    report: ConversionReport, recipe: Recipe, table: Any, record: Written, totals: tuple[Total, Total]
) -> None:
    report.rows += len(table)
    if record.notes:
        report.episode_notes[record.source] = record.notes
    counter = np.arange(record.length)
    times = table["timestamp"].to_numpy().astype(np.float64)
    report.timestamp_error_s = max(
        report.timestamp_error_s, float(np.abs(times - counter / recipe.fps).max())
    )
    expected = {
        "frame_index": counter,
        "index": counter + record.first_index,
        "episode_index": np.full(record.length, record.episode),
    }
    for key, values in expected.items():
        if not np.array_equal(table[key].to_numpy(), values):
            report.errors.append(f"{key} of episode {record.episode} is not what it should be")
    if not set(table["task_index"].unique().to_pylist()) <= set(recipe.tasks.values()):
        report.errors.append(f"task_index of episode {record.episode} is in no list of tasks")
    for feature in recipe.features.values():
        if not feature.is_picture and feature.dtype != "string":
            values = to_numbers(table[feature.key], feature)
            before, after = record.stats[feature.key], number_stats(values, quantiles=False)
            for total, stats in zip(totals, (before, after), strict=True):
                total.add({feature.key: {n: stats[n] for n in BASIC}})
            _check_numbers(report, feature, values, record, after)


def _check_numbers(
    report: ConversionReport, feature: Feature, values: npt.NDArray[Any], record: Written, after: Stats
) -> None:
    before = record.stats[feature.key]
    flat = values.reshape(len(values), -1).astype(np.float64)
    found = report.features.setdefault(feature.key, FeatureCheck())
    difference = max(
        float(np.nanmax(np.abs(np.asarray(before[n], float) - np.asarray(after[n], float)), initial=0.0))
        for n in BASIC
    )
    found.max_difference = max(found.max_difference, difference)
    if difference > 0:
        report.errors.append(f"{feature.key} of episode {record.episode} differs by {difference:g}")
    found.missing += int(np.isnan(flat).sum())
    middle, std = (np.asarray(after[n], np.float64).ravel() for n in ("mean", "std"))
    if np.isnan(middle).any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without any number
            middle, std = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
    far = np.abs(flat - middle) > OUTLIER_SIGMA * np.maximum(std, 1e-12)
    if far.any():
        if not found.outliers:
            row, column = np.argwhere(far)[0]
            found.outlier_first = f"episode {record.source} row {row} [{column}] = {flat[row, column]:g}"
        found.outliers += int(far.sum())
