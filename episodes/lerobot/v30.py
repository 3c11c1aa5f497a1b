"""The metadata of a v3.0 set: what is there already, and how it is written.

Columns and files as LeRobot 0.4.4 writes them (``datasets/lerobot_dataset.py``, ``datasets/utils.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from episodes.errors import ImportRefusedError
from episodes.files import FileLayer
from episodes.lerobot import bounds
from episodes.lerobot.layout import BOOKKEEPING, Dataset
from episodes.lerobot.metadata import Feature, json_object
from episodes.lerobot.stats import BASIC, QUANTILES, Stats
from episodes.lerobot.tables import DEFAULTS

CHUNK_FILES = 1000
EPISODES_PER_FILE = 10_000
_BATCH = 64  # episodes held at once while their metadata is written
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_FILES = FileLayer()
STAGING = ".ratchet-staging"
"""Where a set is made before it is there."""


def place(number: int) -> dict[str, int]:
    """The fields of a path template for the file with this number, counted through all folders."""
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


@dataclass(slots=True)
class Present:
    """What a v3.0 set holds before anything is added: all zero and empty for a new one."""

    episodes: int = 0
    frames: int = 0
    data_files: int = 0
    episode_files: int = 0
    video_files: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Stats] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Feature] = field(default_factory=dict)
    schema: Any = None

    @property
    def fresh(self) -> bool:
        """True when there is no set yet."""
        return not self.info


def look(root: Path) -> Present:
    """What there is in ``root``. Raises ImportRefusedError when it is something else than a v3.0 set."""
    if not (root / "meta" / "info.json").exists():
        if root.exists():
            refuse_foreign(root)
        return Present()
    dataset = Dataset(root)
    if dataset.version != "v3.0":
        raise ImportRefusedError(f"{root} is a {dataset.version} set", "give another destination")
    tasks = dataset.tasks
    if sorted(tasks) != list(range(len(tasks))) or sorted(dataset.episodes) != list(
        range(len(dataset.episodes))
    ):
        raise ImportRefusedError(f"{root} does not count its tasks or episodes 0, 1, 2 …", "convert anew")
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    with bounds.parquet(files[0]) as first:
        schema = first.schema_arrow
    stats = root / "meta" / "stats.json"
    return Present(
        episodes=len(dataset.episodes),
        frames=sum(e.length for e in dataset.episodes.values()),
        data_files=_next_number(root / "data", "*.parquet"),
        episode_files=_next_number(root / "meta" / "episodes", "*.parquet"),
        video_files={k: _next_number(root / "videos" / k, "*.mp4") for k in dataset.video_keys()},
        tasks={text: index for index, text in tasks.items()},
        stats=json_object(stats) if stats.exists() else {},
        info=dataset.info,
        features={**dataset.features, **dataset.bookkeeping},
        schema=schema.remove_metadata(),
    )


def refuse_foreign(root: Path, allowed: tuple[str, ...] = (STAGING,)) -> None:
    """Raises ImportRefusedError when ``root`` is no folder, or more lies in it than what is ``allowed``."""
    if not root.is_dir():
        raise ImportRefusedError(f"{root} is no folder", "choose another destination")
    if others := sorted(p.name for p in root.iterdir() if p.name not in allowed):
        raise ImportRefusedError(
            f"{root} is not empty and holds no such set (there is {others[0][:60]!r})",
            "choose another folder",
        )


def _next_number(folder: Path, pattern: str) -> int:
    numbers = [
        int(p.parent.name.split("-")[1]) * CHUNK_FILES + int(p.stem.split("-")[1])
        for p in folder.glob(f"chunk-*/file-{pattern}")
    ]
    return max(numbers, default=-1) + 1


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """tasks.parquet as pandas reads it back: the texts are the index, in the order of their numbers."""
    ordered = sorted(tasks.items(), key=lambda item: item[1])
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
         "metadata": None},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object",
         "metadata": None},
    ]  # fmt: skip
    level = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
             "metadata": {"encoding": "UTF-8"}}  # fmt: skip
    pandas = {
        "index_columns": ["__index_level_0__"], "column_indexes": [level], "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.2.0",
    }  # fmt: skip
    table = pa.table(
        {
            "task_index": pa.array([i for _, i in ordered], pa.int64()),
            "__index_level_0__": pa.array([t for t, _ in ordered], pa.string()),
        }
    )
    write_table(path, table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def write_table(path: Path, table: Any) -> None:
    """A parquet file, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")
    _FILES.sync_path(path)


def write_json(path: Path, value: Any) -> None:
    """A JSON file as LeRobot lays it out, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False))
    _FILES.sync_path(path)


def write_episodes(staged: Path, rows: Iterator[dict[str, Any]], schema: Any, first_file: int) -> None:
    """meta/episodes: rows as they come, a batch at a time, so many to a file."""
    number = first_file
    while batch := list(islice(rows, _BATCH)):
        at = place(number)
        path = staged / EPISODES_PATH.format(**at)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with pq.ParquetWriter(path, schema, compression="snappy") as writer:
            while batch:
                for row in batch:
                    row |= {f"meta/episodes/{k}": v for k, v in at.items()}
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                written += len(batch)
                batch = list(islice(rows, _BATCH)) if written < EPISODES_PER_FILE else []
        _FILES.sync_path(path)
        number += 1


def episodes_schema(features: Mapping[str, Feature], quantiles: Mapping[str, bool]) -> Any:
    """Columns of meta/episodes. ``quantiles``: for which pictures they are known."""
    whole = pa.int64()
    fields = [
        (name, whole)
        for name in ("episode_index", "data/chunk_index", "data/file_index", "dataset_from_index",
                     "dataset_to_index")
    ]  # fmt: skip
    for key in (f.key for f in features.values() if f.dtype == "video"):
        fields += [(f"videos/{key}/{n}", whole) for n in ("chunk_index", "file_index")]
        fields += [(f"videos/{key}/{n}", pa.float64()) for n in ("from_timestamp", "to_timestamp")]
    fields += [("tasks", pa.list_(pa.string())), ("length", whole)]
    for feature in features.values():
        if feature.dtype == "string":
            continue
        names = (*BASIC, *QUANTILES) if quantiles.get(feature.key, True) else BASIC
        fields += [(f"stats/{feature.key}/{n}", _stat_type(feature, n)) for n in names]
    return pa.schema([*fields, ("meta/episodes/chunk_index", whole), ("meta/episodes/file_index", whole)])


def _stat_type(feature: Feature, name: str) -> Any:
    if name == "count":
        return pa.list_(pa.int64())
    whole = name in ("min", "max") and not feature.is_picture and feature.dtype[:5] != "float"
    kind: Any = pa.int64() if whole else pa.float64()
    for _ in range(3 if feature.is_picture else len(feature.shape)):
        kind = pa.list_(kind)
    return kind


def described(raw: Mapping[str, Any], features: Iterable[Feature], fps: int) -> dict[str, Any]:
    """``features`` of info.json, from what the source said about them."""
    out = {}
    for feature in features:
        entry = {**raw.get(feature.key, {}), "dtype": feature.dtype, "shape": list(feature.shape)}
        if feature.is_picture:
            names = entry.get("names")
            fine = isinstance(names, list) and len(names) == 3 and names[2] in ("channel", "channels")
            entry["names"] = names if fine else ["height", "width", "channels"]
        entry.setdefault("names", list(feature.names) or None)
        if feature.dtype != "video":
            entry["fps"] = fps
        out[feature.key] = entry
    for key, dtype in DEFAULTS.items():
        out[key] = {"dtype": dtype, "shape": [1], "names": None, "fps": fps}
    return out


def default_features() -> dict[str, Feature]:
    """LeRobot's own five columns as features."""
    assert set(DEFAULTS) == BOOKKEEPING
    return {k: Feature(k, dtype, (1,), ()) for k, dtype in DEFAULTS.items()}
