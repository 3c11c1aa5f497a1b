"""Where a LeRobot dataset keeps what: v2.1 (a file per episode) and v3.0 (many episodes per file).

Layouts as LeRobot 0.3.2 (v2.1) and 0.6.2 (v3.0) write them. Paths come out of ``info.json`` templates,
so each is checked to stay inside the dataset's folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from episodes.errors import ImportRefusedError

BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


@dataclass(frozen=True, slots=True)
class Feature:
    """One entry of ``features`` in info.json; ``names`` flattened, empty when absent or unusable."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def is_picture(self) -> bool:
        """True for video and image features."""
        return self.dtype in ("video", "image")


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where an episode's frames lie: a file and the time of the first frame in it, s."""

    path: Path
    start_s: float


@dataclass(frozen=True, slots=True)
class SourceEpisode:
    """One episode of a dataset: its data file, its number of rows, its tasks, its videos by feature."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: dict[str, VideoSpan]


class Dataset:
    """An opened LeRobot dataset folder."""

    def __init__(self, root: Path | str) -> None:
        """Reads the metadata. Raises ImportRefusedError naming the file that is missing or malformed."""
        self.root = Path(root)
        self.info = _object(self.root / "meta" / "info.json")
        self.version = str(self.info.get("codebase_version"))
        if self.version not in ("v2.1", "v3.0"):
            raise ImportRefusedError(
                f"dataset {self.root} has version {self.version}; v2.1 and v3.0 can be imported",
                "convert it with LeRobot's own converter first",
            )
        try:
            self.fps = float(self.info["fps"])
            self.features = {
                k: _feature(k, f) for k, f in self.info["features"].items() if k not in BOOKKEEPING
            }
            self._data_path = str(self.info["data_path"])
            self._video_path = str(self.info.get("video_path") or "")
            self.tasks = self._read_tasks()
            self.episodes = {e.index: e for e in self._read_episodes()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ImportRefusedError(
                f"metadata of {self.root} is malformed ({type(error).__name__}: {error})", "check meta/"
            ) from error
        self._cached: tuple[Path, Any] | None = None

    def table(self, episode: SourceEpisode) -> Any:
        """The rows of an episode as a pyarrow Table, sorted by frame_index. Raises ImportRefusedError."""
        if self._cached is None or self._cached[0] != episode.data:
            self._cached = (episode.data, read_parquet(episode.data))
        table = self._cached[1]
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(table["episode_index"], episode.index))
        return table.sort_by("frame_index") if "frame_index" in table.column_names else table

    def _read_tasks(self) -> dict[int, str]:
        if self.version == "v2.1":
            rows = _json_lines(self.root / "meta" / "tasks.jsonl")
            return {int(r["task_index"]): str(r["task"]) for r in rows}
        table = read_parquet(self.root / "meta" / "tasks.parquet")
        # pandas stores the task strings as the index; its column has no name of its own
        text = next(c for c in ("task", "__index_level_0__", *table.column_names) if c in table.column_names)
        return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))

    def _read_episodes(self) -> list[SourceEpisode]:
        if self.version == "v2.1":
            return [self._episode_v21(row) for row in _json_lines(self.root / "meta" / "episodes.jsonl")]
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise ImportRefusedError(
                f"{self.root / 'meta' / 'episodes'} holds no parquet file", "check the download"
            )
        rows = []
        for file in files:
            table = read_parquet(file)
            rows += table.select([c for c in table.column_names if not c.startswith("stats/")]).to_pylist()
        return [self._episode_v30(row) for row in rows]

    def _episode_v21(self, row: dict[str, Any]) -> SourceEpisode:
        index = int(row["episode_index"])
        where = {"episode_index": index, "episode_chunk": index // int(self.info.get("chunks_size", 1000))}
        videos = {
            key: VideoSpan(self._inside(self._video_path.format(video_key=key, **where)), 0.0)
            for key in self.video_keys()
        }
        data = self._inside(self._data_path.format(**where))
        return SourceEpisode(index, int(row["length"]), tuple(map(str, row["tasks"])), data, videos)

    def _episode_v30(self, row: dict[str, Any]) -> SourceEpisode:
        videos = {}
        for key in self.video_keys():
            at = {n: int(row[f"videos/{key}/{n}"]) for n in ("chunk_index", "file_index")}
            path = self._inside(self._video_path.format(video_key=key, **at))
            videos[key] = VideoSpan(path, float(row[f"videos/{key}/from_timestamp"]))
        data = self._inside(
            self._data_path.format(
                chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"])
            )
        )
        index, length = int(row["episode_index"]), int(row["length"])
        return SourceEpisode(index, length, tuple(map(str, row["tasks"])), data, videos)

    def video_keys(self) -> list[str]:
        """Features kept as video files."""
        return [f.key for f in self.features.values() if f.dtype == "video"]

    def _inside(self, relative: str) -> Path:
        path = self.root / relative
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ImportRefusedError(f"info.json of {self.root} points outside the dataset: {relative}")
        return path


def read_parquet(path: Path) -> Any:
    """A parquet file as a pyarrow Table. Raises ImportRefusedError naming the file."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise ImportRefusedError(f"{path} is missing", "check the download") from None
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise ImportRefusedError(
            f"{path} is not a readable parquet file ({first})",
            "a recording killed before finalize() looks like this",
        ) from error


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImportRefusedError(f"{path} is missing", "give the folder that holds meta/ and data/") from None
    except (OSError, ValueError) as error:
        raise ImportRefusedError(f"{path} is not readable JSON", "check the download") from error
    if not isinstance(value, dict):
        raise ImportRefusedError(f"{path} is not a JSON object", "check the download")
    return value


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise ImportRefusedError(f"{path} is missing", "check the download") from None
    except (OSError, ValueError) as error:
        raise ImportRefusedError(f"{path} is not readable JSON lines", "check the download") from error


def _feature(key: str, described: dict[str, Any]) -> Feature:
    shape = tuple(int(n) for n in described["shape"])
    names = _flat_names(described.get("names"))
    return Feature(key, str(described["dtype"]), shape, names)


def _flat_names(names: Any) -> tuple[str, ...]:
    """LeRobot writes names as a list, a list of lists, a dict of lists, a dict name → index, or null."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        if all(isinstance(v, int) for v in names.values()):
            return tuple(str(k) for k, _ in sorted(names.items(), key=lambda item: item[1]))
        return tuple(n for v in names.values() for n in _flat_names(v))
    if isinstance(names, list):
        return tuple(n for v in names for n in _flat_names(v))
    return ()
