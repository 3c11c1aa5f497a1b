"""The rows of v2.1 episodes as one v3.0 data file, an episode at a time in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.capture import TIME
from episodes.lerobot.check import layout_notes, sequence_notes, timestamp_notes, value_notes
from episodes.lerobot.layout import Dataset, SourceEpisode
from episodes.lerobot.metadata import Feature, json_lines
from episodes.lerobot.plan import OutFile, Part
from episodes.lerobot.stats import PictureStats, Stats, number_stats, sampled_rows
from episodes.lerobot.tables import (
    DEFAULTS,
    IMAGE,
    bookkeeping,
    schema,
    seconds,
    to_column,
    to_numbers,
    whole_numbers,
)
from episodes.lerobot.tasks import row_tasks
from episodes.lerobot.video import decode_picture, video_frames

_GROUP_BYTES = 16 << 20
"""Rows are collected to groups of about this size: many small groups make a file large and slow."""


class SourceStats:
    """Where in episodes_stats.jsonl each episode stands; the statistics are read when asked for."""

    def __init__(self, root: Path) -> None:
        self._path = root / "meta" / "episodes_stats.jsonl"
        self._offsets: dict[int, int] = {}
        if self._path.exists():
            self._offsets = {int(row.get("episode_index", -1)): at for at, row in json_lines(self._path)}

    def of_picture(self, episode: int, key: str) -> Stats | None:
        """Statistics of a picture feature as they stand there; None when absent or misshapen."""
        if episode not in self._offsets:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[episode])
            row = bounds.json_line(file, self._path)
        stats = (row.get("stats") or {}).get(key) if isinstance(row.get("stats"), dict) else None
        if not isinstance(stats, dict):
            return None
        shapes = {n: np.shape(stats.get(n, 0)) for n in ("min", "max", "mean", "std")}
        fine = set(shapes.values()) == {(3, 1, 1)} and np.shape(stats.get("count", 0)) == (1,)
        return stats if fine else None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the rows of a source become those of the new set.

    ``features``: what is written, in order, without LeRobot's own columns; ``capture``: the source's
    timestamps are kept in a column of their own; ``tasks``: text → new number.
    """

    dataset: Dataset
    features: Mapping[str, Feature]
    fps: int
    capture: bool
    tasks: Mapping[str, int]
    stats: SourceStats


@dataclass(slots=True)
class Written:
    """What became of one episode: its tasks, statistics, and what was odd about it."""

    source: int
    episode: int
    first_index: int
    length: int
    tasks: list[str]
    stats: dict[str, Stats]
    notes: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        """Its fields as plain JSON: what ``Written(**row)`` takes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def write_rows(recipe: Recipe, file: OutFile, path: Path) -> Iterator[Written]:
    """Write one data file, an episode each step. Raises ImportRefusedError for one that cannot be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = schema(recipe.features)
    with pq.ParquetWriter(path, columns, compression="snappy") as writer:
        waiting: list[Any] = []
        held = 0
        for part in file.parts:
            table, written = _episode(recipe, part, columns)
            waiting.append(table)
            held += table.nbytes
            if held >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
                held = 0
            yield written
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _episode(recipe: Recipe, part: Part, columns: Any) -> tuple[Any, Written]:
    source = recipe.dataset.episodes[part.source]
    table = recipe.dataset.rows(source)
    place, texts, repairs = row_tasks(recipe.dataset, source, table)
    task = np.array([recipe.tasks[text] for text in texts], np.int64)[place]
    own = bookkeeping(part.length, recipe.fps, part.episode, part.first_index, task)
    written = Written(part.source, part.episode, part.first_index, part.length, texts, {}, repairs)
    written.notes += layout_notes(table, recipe.dataset) + _time_notes(recipe, table)
    arrays = []
    for feature in recipe.features.values():
        if feature.dtype == "video":
            written.stats[feature.key] = _video_stats(recipe, source, feature)
        elif feature.dtype == "image":
            arrays.append(_pictures(table, feature, source))
            written.stats[feature.key] = _image_stats(recipe, source, feature, arrays[-1])
        elif feature.dtype == "string":
            arrays.append(table[feature.key].combine_chunks().cast(pa.string()))
        else:
            values = _numbers(recipe, table, feature)
            written.notes += value_notes(feature.key, values)
            written.stats[feature.key] = number_stats(values)
            arrays.append(to_column(values, feature))
    for key in DEFAULTS:
        written.stats[key] = number_stats(own[key])
        arrays.append(pa.array(own[key]))
    return pa.Table.from_arrays(arrays, schema=columns), written


def _numbers(recipe: Recipe, table: Any, feature: Feature) -> npt.NDArray[Any]:
    if feature.key == TIME and recipe.capture:
        if "timestamp" not in table.column_names:
            raise ImportRefusedError(f"{recipe.dataset.root} has timestamps in some episodes only")
        return np.round(seconds(table, "timestamp") * 1e9).astype(np.int64)
    return to_numbers(table[feature.key], feature)


def _time_notes(recipe: Recipe, table: Any) -> list[str]:
    notes = []
    if "timestamp" in table.column_names:
        notes += timestamp_notes(seconds(table, "timestamp"), recipe.fps)
    else:
        notes.append("no timestamp column; index and fps are used")
    if "frame_index" in table.column_names:
        notes += sequence_notes(whole_numbers(table, "frame_index"))
    else:
        notes.append("no frame_index column; rebuilt from the order of the rows")
    return notes


def _video_stats(recipe: Recipe, source: SourceEpisode, feature: Feature) -> Stats:
    """The source's own statistics; without them some frames are decoded."""
    if (known := recipe.stats.of_picture(source.index, feature.key)) is not None:
        return known
    found, wanted = PictureStats(), set(sampled_rows(source.length))
    size = (feature.shape[0], feature.shape[1])
    path = source.videos[feature.key].path
    for row, rgb in enumerate(video_frames(path, 0.0, source.length, recipe.fps, size)):
        if row in wanted:
            found.add(rgb)
    return found.result()


def _pictures(table: Any, feature: Feature, source: SourceEpisode) -> Any:
    """Embedded pictures as they are, byte for byte."""
    cells = table[feature.key].to_pylist()
    if any(not isinstance(c, dict) or c.get("bytes") is None for c in cells):
        raise ImportRefusedError(
            f"{source.data} does not hold the pictures of {feature.key} themselves",
            "only images stored in the parquet file can be converted",
        )
    return pa.array([{"bytes": c["bytes"], "path": c.get("path")} for c in cells], IMAGE)


def _image_stats(recipe: Recipe, source: SourceEpisode, feature: Feature, cells: Any) -> Stats:
    if (known := recipe.stats.of_picture(source.index, feature.key)) is not None:
        return known
    found = PictureStats()
    for row in sampled_rows(source.length):
        found.add(decode_picture(cells[row].as_py()["bytes"], f"row {row} of {feature.key} in {source.data}"))
    return found.result()
