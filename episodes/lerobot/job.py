"""The import of one episode of a LeRobot dataset."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from episodes.arrays import resize
from episodes.errors import ImportRefusedError
from episodes.lerobot.capture import Capture, is_capture
from episodes.lerobot.check import (
    layout_notes,
    refuse_wrong_times,
    sequence_notes,
    timestamp_notes,
    value_notes,
)
from episodes.lerobot.layout import BOOKKEEPING, Dataset, Feature, SourceEpisode
from episodes.lerobot.tables import seconds, to_numbers, whole_numbers
from episodes.lerobot.tasks import UNNAMED, row_tasks
from episodes.lerobot.video import video_frames
from episodes.reader import decode_jpeg
from episodes.ref import EpisodeRef
from episodes.spec import CameraSpec, EpisodeSpec, Outcome, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter, WriterConfig

log = logging.getLogger(__name__)

IMAGE_PREFIXES = ("observation.images.", "observation.image.")
_DTYPES = {"float32", "float64", "uint8", "int32", "int64", "uint16", "bool"}


class Job:
    """The import of one source episode."""

    def __init__(
        self,
        dataset: Dataset,
        item: SourceEpisode,
        image_size: tuple[int, int] | None,
        outcome: Outcome | None,
    ) -> None:
        """Reads the rows. Raises ImportRefusedError when they are not what the metadata says."""
        self.dataset, self.item, self.image_size, self.outcome = dataset, item, image_size, outcome
        self.frames = 0
        self.notes: list[str] = list(dataset.repairs)
        self.table = dataset.table(item)
        self.rows = len(self.table)
        if self.rows == 0 or self.rows != item.length:
            raise ImportRefusedError(
                f"{item.data} has {self.rows} rows of episode {item.index}, its metadata says {item.length}",
                "check the download, or leave this episode out with episodes=",
            )
        if "timestamp" in self.table.column_names:
            refuse_wrong_times(seconds(self.table, "timestamp"), dataset.fps, item.data)
        self.capture = Capture(self.table, dataset)
        self.label = dataset.labels.of(item.index, item.length)
        self.columns = {f.key: self._column(f) for f in dataset.features.values() if self._is_stream(f)}
        self.notes += layout_notes(self.table, dataset)
        self.pictures = [f for f in dataset.features.values() if f.is_picture and self._is_there(f)]
        self.digest = self._digest()

    def record(self, store: EpisodeStore) -> EpisodeRef:
        """Record and end the episode; nothing of it is left when it cannot be read to the end."""
        try:
            spec = self._spec()
        except ValidationError as error:
            first = error.errors()[0]
            raise ImportRefusedError(
                f"features of {self.dataset.root} cannot be stored: {first['msg']} ({first.get('input')!r})",
                "rename them in info.json",
            ) from error
        writer = store.begin(spec, started_ns=0, config=WriterConfig(wait_when_full=True))
        try:
            self._append_all(writer)
        except BaseException:
            writer.discard()
            raise
        labelled = self.label.outcome if self.label is not None else "unknown"
        ref = writer.end(self.outcome or labelled, "imported")
        log.info("import.episode source=%s index=%d id=%s", self.dataset.root, self.item.index, ref.id)
        return ref

    def _append_all(self, writer: EpisodeWriter) -> None:
        sequence = np.arange(self.rows)
        times_s = sequence / self.dataset.fps
        if self._has("timestamp"):
            times_s = seconds(self.table, "timestamp")
        if self._has("frame_index"):
            sequence = whole_numbers(self.table, "frame_index")
        self.notes += timestamp_notes(times_s, self.dataset.fps) + sequence_notes(sequence)
        grid_ns = np.round(times_s * 1e9).astype(np.int64)
        t_ns, seq, _ = (a.tolist() for a in self.capture.of_ticks(grid_ns, sequence))
        for name, values in self.columns.items():
            self.notes += value_notes(name, values)
            for row in range(self.rows):
                writer.append(name, t_ns[row], seq[row], values[row])
        for feature in self.pictures:
            camera = camera_name(feature.key)
            t_ns, seq, repeated = (a.tolist() for a in self.capture.of_camera(camera, grid_ns, sequence))
            for row, picture in enumerate(self._frames(feature)):
                writer.append_frame(camera, t_ns[row], seq[row], picture, repeated=repeated[row])
                self.frames += 1
        if self.label is not None:
            for flag in self.label.flags:
                writer.flag(flag.kind, flag.start_ns, flag.end_ns, flag.score, flag.evidence)
            for span in self.label.interventions:
                writer.intervention(span.start_ns, span.end_ns, span.by)

    def _frames(self, feature: Feature) -> Iterator[npt.NDArray[np.uint8]]:
        size = self._size(feature)
        if feature.dtype == "video":
            span = self.item.videos[feature.key]
            yield from video_frames(span.path, span.start_s, self.rows, self.dataset.fps, size)
            return
        for cell in self.table[feature.key].to_pylist():
            data = (cell or {}).get("bytes")
            if data is None:
                raise ImportRefusedError(
                    f"{self.item.data} does not hold the pictures of {feature.key} themselves",
                    "only images stored in the parquet file can be imported",
                )
            yield resize(decode_jpeg(data), size)

    def _spec(self) -> EpisodeSpec:
        features = self.dataset.features
        streams = []
        for key, values in self.columns.items():
            names = features[key].names
            if len(names) != int(np.prod(values.shape[1:], dtype=int)):
                self.notes.append(f"{key} has no usable names in info.json")
                names = ()
            shape = values.shape[1:]
            unit = features[key].unit
            streams.append(StreamSpec(name=key, dtype=values.dtype.name, shape=shape, names=names, unit=unit))
        cameras = []
        for feature in self.pictures:
            height, width = self._size(feature)
            cameras.append(CameraSpec(name=camera_name(feature.key), height=height, width=width))
        return EpisodeSpec(
            task=self._task(), kind="import", fps=self.dataset.fps,
            streams=tuple(streams), cameras=tuple(cameras),
            provenance={
                "source": self.digest, "format": f"lerobot {self.dataset.version}",
                "dataset": self.dataset.root.name, "episode_index": self.item.index,
                "robot": self.dataset.info.get("robot_type"),
            },
        )  # fmt: skip

    def _task(self) -> str:
        _, names, repairs = row_tasks(self.dataset, self.item, self.table)
        self.notes += repairs
        if len(names) > 1:
            self.notes.append(f"has {len(names)} tasks; the first one is kept: {names[0]}")
        return names[0] or UNNAMED

    def _size(self, feature: Feature) -> tuple[int, int]:
        return self.image_size or (feature.shape[0], feature.shape[1])

    def _is_stream(self, feature: Feature) -> bool:
        made = self.label.columns if self.label is not None else ()
        if feature.is_picture or is_capture(feature.key) or feature.key in made:
            return False
        if feature.dtype not in _DTYPES or feature.key not in self.table.column_names:
            self.notes.append(f"{feature.key} ({feature.dtype}) is not imported: no numbers in the data file")
            return False
        return True

    def _is_there(self, feature: Feature) -> bool:
        if feature.dtype == "image" or self.item.videos[feature.key].path.is_file():
            return True
        self.notes.append(f"camera {camera_name(feature.key)} is left out: its video is missing")
        return False

    def _column(self, feature: Feature) -> npt.NDArray[Any]:
        shape = () if feature.shape == (1,) and not _is_list(self.table, feature.key) else feature.shape
        try:
            return to_numbers(self.table[feature.key], feature).reshape(self.rows, *shape)
        except ImportRefusedError as error:
            raise ImportRefusedError(f"{self.item.data}: {error.what}", error.remedy) from error

    def _has(self, column: str) -> bool:
        if column not in self.table.column_names:
            self.notes.append(f"no {column} column; index and fps are used")
            return False
        return True

    def _digest(self) -> str:
        """Identity of what is imported: numbers, videos, and the size pictures are stored at."""
        sha = hashlib.sha256()
        for key in sorted(self.columns):
            sha.update(key.encode() + self.columns[key].tobytes())
        for column in sorted(BOOKKEEPING & set(self.table.column_names) - {"index", "task_index"}):
            sha.update(column.encode() + np.asarray(self.table[column].to_pylist()).tobytes())
        for feature in self.pictures:
            if feature.dtype == "video":
                span = self.item.videos[feature.key]
                sha.update(f"{feature.key} {span.start_s} {span.path.stat().st_size}".encode())
            else:
                for cell in self.table[feature.key].to_pylist():
                    sha.update((cell or {}).get("bytes") or b"")
        sha.update(json.dumps([self.dataset.version, self.image_size, self.item.tasks]).encode())
        return sha.hexdigest()


def camera_name(key: str) -> str:
    """``observation.images.top`` → ``top``."""
    for prefix in IMAGE_PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _is_list(table: Any, key: str) -> bool:
    return "list" in str(table.schema.field(key).type)
