"""Where a LeRobot dataset keeps what: v2.1 (a file per episode) and v3.0 (many episodes per file).

Layouts as LeRobot 0.3.2 (v2.1) and 0.4.4 to 0.6.2 (v3.0) write them. Paths come out of ``info.json``
templates, so each is checked to stay inside the dataset's folder. Per episode only a few numbers are
held: memory does not grow with the frames, and hardly with the episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.labels import Labels
from episodes.lerobot.metadata import Feature as Feature  # part of this module's interface
from episodes.lerobot.metadata import json_lines, json_object, read_features, read_tasks

BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
_V21_FIELDS = {"episode_index", "episode_chunk", "video_key"}
_V30_FIELDS = {"chunk_index", "file_index", "video_key"}


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where an episode's frames lie: a file and the time of the first frame in it, s."""

    path: Path
    start_s: float


@dataclass(frozen=True, slots=True)
class SourceEpisode:
    """One episode of a dataset: its data file, its number of rows, its tasks, its videos by feature.

    ``first_row`` is where it starts among the rows of its data file, None when that is not known.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: dict[str, VideoSpan]
    first_row: int | None = None


class Dataset:
    """An opened LeRobot dataset folder. ``repairs`` says what was read differently than it is written."""

    def __init__(self, root: Path | str) -> None:
        """Reads the metadata. Raises ImportRefusedError naming the file that is missing or malformed."""
        self.root = Path(root)
        self._home = bounds.Home(self.root)
        for path in (*self.root.glob("meta/*"), *self.root.glob("meta/episodes/*/*.parquet")):
            self._home.inside(path)
        where = self.root / "meta" / "info.json"
        self.info = json_object(where)
        self.version = str(self.info.get("codebase_version"))
        if self.version not in ("v2.1", "v3.0"):
            raise ImportRefusedError(
                f"dataset {self.root} has version {self.version[:40]}; v2.1 and v3.0 can be read",
                "convert it with LeRobot's own converter first",
            )
        self.repairs: list[str] = []
        try:
            self.fps = bounds.number(self.info["fps"], 1e-3, bounds.FPS, "fps", where)
            every = read_features(self.info, where, self.repairs)
            self.bookkeeping = {k: f for k, f in every.items() if k in BOOKKEEPING}
            self.features = {k: f for k, f in every.items() if k not in BOOKKEEPING}
            fields = _V21_FIELDS if self.version == "v2.1" else _V30_FIELDS
            self._data_path = bounds.template(str(self.info["data_path"]), fields, where)
            self._video_path = bounds.template(str(self.info.get("video_path") or ""), fields, where)
            self._chunk = int(bounds.number(self.info.get("chunks_size", 1000), 1, 1e9, "chunks_size", where))
            self.tasks = read_tasks(self.root, self.version)
            self.episodes: Mapping[int, SourceEpisode] = (
                _EpisodesV21(self) if self.version == "v2.1" else _EpisodesV30(self)
            )
            for index in self._first_and_last():
                _ = self.episodes[index]  # paths that cannot be made are refused now
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
            raise ImportRefusedError(
                f"metadata of {self.root} is malformed ({type(error).__name__}: {error})", "check meta/"
            ) from error
        self.labels = Labels(self.root)
        self._cached: tuple[Path, Any] | None = None

    def table(self, episode: SourceEpisode) -> Any:
        """The rows of an episode as a pyarrow Table, sorted by frame_index. Raises ImportRefusedError.

        The data file read last is kept: in v3.0 it holds the next episodes too.
        """
        if self._cached is None or self._cached[0] != episode.data:
            self._cached = (episode.data, bounds.read(episode.data))
        return self._rows_of(episode, self._cached[1])

    def rows(self, episode: SourceEpisode) -> Any:
        """The same, from the file each time: for several threads, and files of one episode."""
        return self._rows_of(episode, bounds.read(episode.data))

    def _rows_of(self, episode: SourceEpisode, table: Any) -> Any:
        if "episode_index" in table.column_names:
            mine = pc.equal(table["episode_index"], episode.index).combine_chunks()
            if mine.true_count != len(table):
                table = table.take(pc.indices_nonzero(mine))
        elif episode.first_row is not None:
            table = table.slice(episode.first_row, episode.length)
        return in_order(table)

    def video_keys(self) -> list[str]:
        """Features kept as video files."""
        return [f.key for f in self.features.values() if f.dtype == "video"]

    def data_file(self, **at: int) -> Path:
        """A data file by the fields of its path template."""
        return self._inside(self._data_path.format(**at))

    def video_file(self, key: str, **at: int) -> Path:
        """A video file of feature ``key`` by the fields of its path template."""
        return self._inside(self._video_path.format(video_key=key, **at))

    @property
    def chunk(self) -> int:
        """Episodes (v2.1) or files (v3.0) in one folder."""
        return self._chunk

    def _first_and_last(self) -> list[int]:
        indices = list(self.episodes)
        return [indices[0], indices[-1]] if indices else []

    def _inside(self, relative: str) -> Path:
        return self._home.inside(self.root / relative)


def in_order(table: Any) -> Any:
    """The rows sorted by frame_index, where there is one."""
    if "frame_index" in table.column_names:
        order = pc.sort_indices(table, sort_keys=[("frame_index", "ascending")])
        if not np.array_equal(order.to_numpy(), np.arange(len(table))):
            return table.take(order)
    return table


class _EpisodesV21(Mapping[int, SourceEpisode]):
    """Episodes of episodes.jsonl: length and tasks by index."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._held: dict[int, tuple[int, tuple[str, ...]]] = {}
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        path = dataset.root / "meta" / "episodes.jsonl"
        for _, row in json_lines(path):
            index = int(bounds.number(row["episode_index"], 0, bounds.EPISODES, "episode_index", path))
            length = int(bounds.number(row["length"], 0, bounds.LENGTH, "length", path))
            if index in self._held:
                raise ImportRefusedError(f"{path} lists episode {index} twice", "check it")
            tasks = tuple(map(str, row.get("tasks") or ()))
            self._held[index] = (length, shared.setdefault(tasks, tasks))

    def __getitem__(self, index: int) -> SourceEpisode:
        length, tasks = self._held[index]
        data = self._dataset
        at = {"episode_index": index, "episode_chunk": index // data.chunk}
        videos = {key: VideoSpan(data.video_file(key, **at), 0.0) for key in data.video_keys()}
        return SourceEpisode(index, length, tasks, data.data_file(**at), videos, 0)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class _EpisodesV30(Mapping[int, SourceEpisode]):
    """Episodes of meta/episodes/*.parquet; the statistics in there are not held."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        folder = dataset.root / "meta" / "episodes"
        files = sorted(folder.glob("*/*.parquet"))
        if not files:
            raise ImportRefusedError(f"{folder} holds no parquet file", "check the download")
        parts = []
        for file in files:
            with bounds.parquet(file) as opened:
                names = [n for n in opened.schema_arrow.names if not n.startswith("stats/")]
            parts.append(bounds.read(file, names))
        self._table = pa.concat_tables(parts, promote_options="permissive")
        self._row = {index: row for row, index in enumerate(self._table["episode_index"].to_pylist())}
        self._file_start: dict[tuple[int, int], int] = {}
        if "dataset_from_index" in self._table.column_names:
            columns = ("data/chunk_index", "data/file_index", "dataset_from_index")
            for chunk, file, start in zip(*(self._table[c].to_pylist() for c in columns), strict=True):
                self._file_start[chunk, file] = min(start, self._file_start.get((chunk, file), start))

    def __getitem__(self, index: int) -> SourceEpisode:
        row = self._table.slice(self._row[index], 1).to_pylist()[0]
        data, where = self._dataset, self._dataset.root / "meta" / "episodes"
        videos = {}
        for key in data.video_keys():
            at = {n: int(row[f"videos/{key}/{n}"]) for n in ("chunk_index", "file_index")}
            start = bounds.number(row[f"videos/{key}/from_timestamp"], 0, 1e9, "from_timestamp", where)
            videos[key] = VideoSpan(data.video_file(key, **at), start)
        at = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
        start_row = row.get("dataset_from_index")
        file = (at["chunk_index"], at["file_index"])
        first = None if start_row is None else start_row - self._file_start[file]
        length = int(bounds.number(row["length"], 0, bounds.LENGTH, "length", where))
        return SourceEpisode(
            index, length, tuple(map(str, row["tasks"])), data.data_file(**at), videos, first
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)
