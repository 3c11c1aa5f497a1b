"""LeRobot sets and Ratchet stores as lint sees them: rows, times, pictures, and what is declared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from episodes.arrays import resize
from episodes.errors import ImportRefusedError, StoreError
from episodes.lerobot.capture import TIME, is_capture
from episodes.lerobot.check import arrow_name, value_type
from episodes.lerobot.layout import BOOKKEEPING, Dataset, SourceEpisode
from episodes.lerobot.remux import video_facts
from episodes.lerobot.tables import to_numbers
from episodes.lerobot.video import decode_picture, video_frames
from episodes.reader import Episode
from episodes.spec import TICK_STREAMS
from episodes.store import EpisodeStore

LOOK = (60, 80)
"""Pictures are judged at this size: noise averages out, a frozen or black one stays what it is."""

_Picture = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Numbers:
    """One stream: rows (n, width) and the names of the columns, their times in s, their unit."""

    values: npt.NDArray[Any]
    times_s: npt.NDArray[np.float64]
    names: tuple[str, ...] = ()
    unit: str = ""


@dataclass(slots=True)
class Camera:
    """One camera of an episode: how many pictures belong to it and when they were taken.

    ``marked`` are pictures said to be repeats. ``pictures`` decodes them, uint8 (H, W, 3) of the size LOOK.
    """

    frames: int
    times_s: npt.NDArray[np.float64]
    marked: npt.NDArray[np.bool_]
    pictures: Any


@dataclass(slots=True)
class View:
    """One episode: ``grid_s`` are LeRobot's timestamps (None for a store, whose times are real).

    ``faults`` are (check, severity, text) found while it was opened.
    """

    name: str
    fps: float
    streams: dict[str, Numbers]
    cameras: dict[str, Camera]
    grid_s: npt.NDArray[np.float64] | None = None
    faults: list[tuple[str, str, str]] = field(default_factory=list)


def views(path: Path, where: str = "true") -> Iterator[View]:
    """Every episode of a set or store. Raises ImportRefusedError, StoreError when it cannot be opened."""
    if (path / "store.json").exists():
        with EpisodeStore.open(path, create=False, mode="r") as store:
            for episode_id in store.select(where):
                yield _of_store(store, episode_id)
        return
    dataset = Dataset(path)
    for index in sorted(dataset.episodes):
        yield _of_dataset(dataset, dataset.episodes[index])


def count(path: Path, where: str = "true") -> int:
    """How many episodes ``views`` gives. Raises as it does."""
    if (path / "store.json").exists():
        with EpisodeStore.open(path, create=False, mode="r") as store:
            return len(store.select(where))
    return len(Dataset(path).episodes)


def column_name(names: tuple[str, ...], column: int) -> str:
    """What a column of a stream is called: by its place where it has no name."""
    return names[column] if column < len(names) else f"[{column}]"


def action_columns(path: Path, where: str = "true") -> list[str]:
    """The columns actions have in a set or store."""
    kinds: dict[tuple[tuple[str, ...], int], None] = {}
    if (path / "store.json").exists():
        with EpisodeStore.open(path, create=False, mode="r") as store:
            for episode_id in store.select(where):
                if (meta := store.read(episode_id).meta.streams.get("action")) is not None:
                    kinds[meta.names, int(np.prod(meta.shape, dtype=int))] = None
    elif (feature := Dataset(path).features.get("action")) is not None:
        kinds[feature.names, int(np.prod(feature.shape))] = None
    return list(dict.fromkeys(column_name(names, i) for names, width in kinds for i in range(width)))


def set_faults(path: Path) -> list[tuple[str, str, str]]:
    """What is wrong with a LeRobot set as a whole; nothing for a store."""
    if (path / "store.json").exists():
        return []
    dataset = Dataset(path)
    found = [("layout", "warning", r) for r in dataset.repairs]
    listed = {
        "total_episodes": len(dataset.episodes),
        "total_frames": sum(e.length for e in dataset.episodes.values()),
        "total_tasks": len(dataset.tasks),
    }
    for key, value in listed.items():
        if dataset.info.get(key) != value:
            text = f"info.json says {key} {dataset.info.get(key)}, the metadata lists {value}"
            found.append(("totals", "error", text))
    if sorted(dataset.episodes) != list(range(len(dataset.episodes))):
        found.append(
            ("indices", "error", "episodes are not numbered 0, 1, 2 …: LeRobot finds them by position")
        )
    for feature in dataset.features.values():
        size = int(np.prod(feature.shape)) if not feature.is_picture else 0
        if size > 1 and len(feature.names) != size:
            found.append(
                ("names", "warning", f"{feature.key} has {len(feature.names)} names for {size} values")
            )
    return found


# ---- a LeRobot set ------------------------------------------------------------------------------


def _of_dataset(dataset: Dataset, item: SourceEpisode) -> View:
    view = View(f"episode {item.index}", dataset.fps, {}, {})
    try:
        table = dataset.table(item)
    except ImportRefusedError as error:
        view.faults.append(("unreadable", "error", str(error)))
        return view
    if len(table) != item.length or not len(table):
        view.faults.append(
            ("rows", "error", f"{len(table)} rows in {item.data.name}, the metadata says {item.length}")
        )
    _columns(dataset, item, table, view)
    for key in dataset.video_keys():
        _video(dataset, item, key, len(table), view)
    return view


def _columns(dataset: Dataset, item: SourceEpisode, table: Any, view: View) -> None:
    missing = sorted(BOOKKEEPING - set(table.column_names))
    if missing:
        view.faults.append(("columns", "error", f"no {', '.join(missing)} column"))
    nominal = np.arange(len(table)) / dataset.fps
    if "timestamp" in table.column_names:
        view.grid_s = np.asarray(table["timestamp"].to_numpy(), np.float64)
    for key, feature in {**dataset.features, **dataset.bookkeeping}.items():
        if feature.dtype == "video":
            continue
        if key not in table.column_names:
            if key not in BOOKKEEPING:
                view.faults.append(("columns", "error", f"no {key} column, which info.json describes"))
            continue
        if feature.dtype == "image":
            _images(item, key, table, view)
            continue
        found = str(value_type(table.schema.field(key).type))
        if found != arrow_name(feature.dtype):
            view.faults.append(("dtype", "error", f"{key} is {found}, info.json says {feature.dtype}"))
        if feature.dtype == "string" or is_capture(key):
            continue
        try:
            values = to_numbers(table[key], feature)
        except ImportRefusedError as error:
            view.faults.append(("dtype", "error", str(error)))
            continue
        if key not in BOOKKEEPING:
            flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
            view.streams[key] = Numbers(flat, nominal, feature.names, feature.unit)
    _indices(item, table, dataset, view)
    if TIME in table.column_names:
        times = np.asarray(table[TIME].to_numpy(), np.float64) / 1e9
        for stream in view.streams.values():
            stream.times_s = times


def _indices(item: SourceEpisode, table: Any, dataset: Dataset, view: View) -> None:
    if "frame_index" in table.column_names and not np.array_equal(
        table["frame_index"].to_numpy(), np.arange(len(table))
    ):
        view.faults.append(("indices", "error", "frame_index does not count 0, 1, 2 …"))
    if "index" in table.column_names and len(table):
        index = np.asarray(table["index"].to_numpy())
        if not np.array_equal(index, np.arange(len(table)) + index[0]):
            view.faults.append(("indices", "error", "index does not count up by one"))
    if "task_index" in table.column_names:
        unknown = set(table["task_index"].to_pylist()) - set(dataset.tasks)
        if unknown:
            view.faults.append(("indices", "error", f"task_index {min(unknown)} is in no list of tasks"))


def _images(item: SourceEpisode, key: str, table: Any, view: View) -> None:
    rows = len(table)

    def pictures() -> Iterator[_Picture]:
        for row in range(rows):
            cell = table[key][row].as_py() or {}
            where = f"row {row} of {key} in {item.data}"
            if cell.get("bytes") is None:
                raise ImportRefusedError(f"{where} holds no picture")
            yield resize(decode_picture(cell["bytes"], where), LOOK)

    view.cameras[key] = Camera(rows, np.arange(rows) / view.fps, np.zeros(rows, bool), pictures)


def _video(dataset: Dataset, item: SourceEpisode, key: str, rows: int, view: View) -> None:
    span = item.videos[key]
    try:
        facts = video_facts(span.path)
    except ImportRefusedError as error:
        view.faults.append(("video", "error", str(error)))
        return
    height, width = dataset.features[key].shape[:2]
    if (facts.height, facts.width) != (height, width):
        text = f"{key} is {facts.width}×{facts.height} in the video, {width}×{height} in info.json"
        view.faults.append(("video", "error", text))
    if dataset.version == "v2.1" and facts.frames != rows:
        text = f"{key} has {facts.frames} frames in the video, {rows} rows in the data file"
        view.faults.append(("video", "error", text))
    if dataset.version == "v3.0" and round(span.start_s * dataset.fps) + rows > facts.frames:
        needed = round(span.start_s * dataset.fps) + rows
        text = f"{key} needs {needed} frames in {span.path.name}, which has {facts.frames}"
        view.faults.append(("video", "error", text))

    def pictures() -> Iterator[_Picture]:
        return video_frames(span.path, span.start_s, rows, dataset.fps, LOOK)

    view.cameras[key] = Camera(rows, np.arange(rows) / dataset.fps, np.zeros(rows, bool), pictures)


# ---- a Ratchet store ----------------------------------------------------------------------------


def _of_store(store: EpisodeStore, episode_id: str) -> View:
    episode = store.read(episode_id)
    view = View(episode_id, episode.meta.fps, {}, {})
    if episode.meta.recovered:
        view.faults.append(("recovered", "warning", "its end was lost in a crash"))
    for name, drop in episode.meta.drops.items():
        view.faults.append(("drops", "warning", f"{drop.count} samples of {name} were not recorded"))
    start = episode.meta.started_ns
    try:
        for name, stream in episode.streams.items():
            flat = stream.values.reshape(len(stream), int(np.prod(stream.values.shape[1:])))
            view.streams[name] = Numbers(flat, (stream.t_ns - start) / 1e9, stream.names, stream.unit)
        for camera in episode.cameras:
            view.cameras[camera] = _camera(episode, camera)
    except StoreError as error:
        view.faults.append(("unreadable", "error", str(error)))
    if not any(n in view.streams for n in TICK_STREAMS):
        view.faults.append(("columns", "error", f"neither of {', '.join(TICK_STREAMS)} is there"))
    return view


def _camera(episode: Episode, name: str) -> Camera:
    frames = episode.frames(name)
    times = (frames.t_ns - episode.meta.started_ns) / 1e9

    def pictures() -> Iterator[_Picture]:
        for index in range(len(frames)):
            yield resize(frames[index], LOOK)

    return Camera(len(frames), times, frames.repeated, pictures)
