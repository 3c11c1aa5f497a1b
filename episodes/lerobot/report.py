"""What a conversion did, proved from what it wrote: the new files are read back and compared.

Rows are read a group at a time. Frame counts come from counting packets, not from headers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
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
from episodes.lerobot.stats import number_stats
from episodes.lerobot.tables import to_numbers

OUTLIER_SIGMA = 8.0
"""A value this many standard deviations from its feature's mean counts as an outlier."""


@dataclass(slots=True)
class FeatureCheck:
    """One feature before and after: means over the set, the largest difference of any statistic of any
    episode, values missing (NaN), and outliers."""

    mean_before: list[float]
    mean_after: list[float]
    max_difference: float = 0.0
    missing: int = 0
    outliers: int = 0
    outlier_first: str = ""


@dataclass(slots=True)
class ConversionReport:
    """``episodes`` maps source episode → new episode. ``errors`` is what is wrong with the result (it is
    then not published), ``repairs`` what was read or written differently than it stood in the source,
    ``notes`` per source episode what is odd about it."""

    source: str
    target: str
    episodes: dict[int, int] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    resumed: bool = False
    files: int = 0
    files_resumed: int = 0
    rows: int = 0
    frames: dict[str, int] = field(default_factory=dict)
    timestamp_error_s: float = 0.0
    features: dict[str, FeatureCheck] = field(default_factory=dict)
    dimensions: dict[str, str] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    episode_notes: dict[int, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def refuse_when_wrong(self) -> None:
        """Raises ImportRefusedError with the first error."""
        if self.errors:
            raise ImportRefusedError(
                f"the conversion of {self.source} failed its own checks: {self.errors[0]}"
                + (f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""),
                "nothing was published",
            )


def check_set(
    report: ConversionReport,
    recipe: Recipe,
    staged: Path,
    data: list[OutFile],
    videos: Mapping[str, list[OutFile]],
    records: Iterator[Written],
) -> None:
    """Read everything back and compare: fills ``report`` and its ``errors``."""
    for key, files in videos.items():
        report.frames[key] = 0
        for file in files:
            path = staged / v30.VIDEO_PATH.format(video_key=key, **v30.place(file.number))
            _check_video(report, recipe, file, path)
    for file in data:
        path = staged / v30.DATA_PATH.format(**v30.place(file.number))
        with bounds.parquet(path) as opened:
            _check_schema(report, recipe, opened.schema_arrow, path)
            batches = _episodes(opened, [p.length for p in file.parts])
            for table, _ in zip(batches, file.parts, strict=True):
                _check_rows(report, recipe, table, next(records))


def _check_video(report: ConversionReport, recipe: Recipe, file: OutFile, path: Path) -> None:
    times = array("d")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        size, tick = (stream.height, stream.width), float(stream.time_base or 0)
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                times.append(packet.pts * tick)
    last = file.parts[-1]
    expected = last.first_frame + last.length
    report.frames[file.key] += sum(p.length for p in file.parts)
    if len(times) < expected:
        report.errors.append(f"{path.name} of {file.key} has {len(times)} frames, not {expected}")
        return
    off = np.abs(np.sort(times) - np.arange(len(times)) / recipe.fps).max()
    if off > 1e-4:
        report.errors.append(f"frames of {path.name} of {file.key} are up to {off:.4f} s off their time")
    shape = recipe.features[file.key].shape[:2]
    report.dimensions[file.key] = f"{size[0]}x{size[1]}"
    if size != shape:
        report.errors.append(f"{path.name} of {file.key} is {size[0]}×{size[1]}, not {shape[0]}×{shape[1]}")


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


def _check_rows(report: ConversionReport, recipe: Recipe, table: Any, record: Written) -> None:
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
    for feature in recipe.features.values():
        if not feature.is_picture and feature.dtype != "string":
            _check_numbers(report, feature, to_numbers(table[feature.key], feature), record)


def _check_numbers(
    report: ConversionReport, feature: Feature, values: npt.NDArray[Any], record: Written
) -> None:
    after, before = number_stats(values), record.stats[feature.key]
    flat = values.reshape(len(values), -1).astype(np.float64)
    width = flat.shape[1]
    found = report.features.setdefault(feature.key, FeatureCheck([0.0] * width, [0.0] * width))
    weight = record.length / (report.rows or 1)
    for mean, stats in ((found.mean_before, before), (found.mean_after, after)):
        now = np.asarray(stats["mean"], np.float64).ravel()
        mean[:] = (np.asarray(mean) + (now - np.asarray(mean)) * weight).tolist()
    difference = max(
        float(np.nanmax(np.abs(np.asarray(before[n], float) - np.asarray(after[n], float)), initial=0.0))
        for n in ("min", "max", "mean", "std", "count")
    )
    found.max_difference = max(found.max_difference, difference)
    if difference > 0:
        report.errors.append(f"{feature.key} of episode {record.episode} differs by {difference:g}")
    found.missing += int(np.isnan(flat).sum())
    std = np.nanstd(flat, axis=0)
    far = np.abs(flat - np.nanmean(flat, axis=0)) > OUTLIER_SIGMA * np.maximum(std, 1e-12)
    if far.any():
        if not found.outliers:
            row, column = np.argwhere(far)[0]
            found.outlier_first = f"episode {record.source} row {row} [{column}] = {flat[row, column]:g}"
        found.outliers += int(far.sum())
