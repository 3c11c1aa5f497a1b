"""One episode of an export as v2.1 has it: rows, a video per camera, and a line of metadata."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.files import FileLayer
from episodes.lerobot import v21
from episodes.lerobot.capture import REPEATED, SEQ, TIME
from episodes.lerobot.durable import write_whole
from episodes.lerobot.encode import encode_video
from episodes.lerobot.export_plan import ExportPlan
from episodes.lerobot.grid import Grid, rows_of, shown
from episodes.lerobot.job import IMAGE_PREFIXES
from episodes.lerobot.labels import LABELS, label_columns, label_line, label_of
from episodes.lerobot.stats import PictureStats, number_stats, sampled_rows
from episodes.lerobot.tables import DEFAULTS, IMAGE, bookkeeping, schema, to_column
from episodes.reader import Episode, FrameSeq

_FILES = FileLayer()


@dataclass(slots=True)
class Made:
    """What became of an episode: its rows and pictures, what its rows do not show."""

    length: int = 0
    frames: int = 0
    notes: list[str] = field(default_factory=list)
    reused: bool = False


class Lines:
    """The metadata of the episodes of an export in ``work``, a file each until the set is whole.

    A file that is there means that the episode's rows and videos are on the disk.
    """

    def __init__(self, work: Path, plan: ExportPlan) -> None:
        """What an export with other options or features left in ``work`` is taken away."""
        self.work, self._folder, self._count = work, work / ".lines", 0
        kind = json.dumps([asdict(plan.options), list(plan.features), plan.fps])
        said = self._folder / "plan"
        if not said.exists() or said.read_text() != kind:
            shutil.rmtree(work, ignore_errors=True)
            self._folder.mkdir(parents=True)
            write_whole(said, kind)

    def known(self, number: int, identity: list[Any]) -> dict[str, Any] | None:
        """What was noted about an episode, if it was made just so."""
        try:
            known: dict[str, Any] = json.loads(self._path(number).read_bytes())
        except (OSError, ValueError):
            return None
        return known if known.get("identity") == identity else None

    def note(self, number: int, known: dict[str, Any]) -> None:
        """Note an episode that is on the disk."""
        write_whole(self._path(number), json.dumps(known))

    def keep(self, count: int) -> None:
        """There are ``count`` episodes: those that an earlier export had more go, and labels are written."""
        self._count = count
        for path in self._folder.iterdir():
            if path.suffix == ".json" and int(path.stem) >= count:
                number = int(path.stem)
                v21.data_file(self.work, number).unlink(missing_ok=True)
                for video in self.work.glob(f"videos/*/*/episode_{number:06d}.mp4"):
                    video.unlink()
        (self.work / "meta").mkdir(exist_ok=True)
        with (self.work / LABELS).open("w") as file:
            for number in range(count):
                file.write(json.loads(self._path(number).read_bytes())["label"])
        _FILES.sync_path(self.work / LABELS)

    def __iter__(self) -> Iterator[v21.Line]:
        for number in range(self._count):
            yield v21.Line(**json.loads(self._path(number).read_bytes())["line"])

    def remove(self) -> None:
        """The set is whole: they are not needed any more."""
        shutil.rmtree(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.json"


def write_episode(
    episode: Episode, number: int, first_index: int, tasks: Mapping[str, int], plan: ExportPlan, lines: Lines
) -> Made:
    """Write ``episode`` as number ``number``, unless ``lines`` say that it is there."""
    task = tasks[episode.meta.task]
    identity = [plan.identities[episode.id], number, first_index, task]
    if (known := lines.known(number, identity)) is not None:
        return Made(known["line"]["length"], known["frames"], known["notes"], True)
    grid = rows_of(episode, plan.fps, plan.options.fill)
    one = _One(episode, number, plan, lines.work, grid)
    one.columns |= bookkeeping(len(grid), plan.fps, number, first_index, task)
    one.write()
    made = Made(len(grid), one.frames, one.notes)
    line = v21.Line(number, len(grid), [episode.meta.task], one.stats)
    known = {"identity": identity, "line": asdict(line), "frames": made.frames, "notes": made.notes}
    lines.note(number, known | {"label": label_line(one.label)})
    return made


class _One:
    """An episode being written: its columns, statistics and notes so far."""

    def __init__(self, episode: Episode, number: int, plan: ExportPlan, work: Path, grid: Grid) -> None:
        self.episode, self.number, self.plan, self.work, self.grid = episode, number, plan, work, grid
        start = int(grid.t_ns[0])
        self.label = label_of(episode, number, start, len(grid), plan.labels)
        self.columns: dict[str, npt.NDArray[Any]] = {
            TIME: grid.t_ns - start, SEQ: grid.seq, REPEATED: grid.repeated,
        }  # fmt: skip
        made = label_columns(self.label, self.columns[TIME])
        self.columns |= {name: made[name] for name in plan.labels}
        self.arrays: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self.notes = [f"{grid.left_out} ticks are shown by no row"] if grid.left_out else []
        self.frames = 0

    def write(self) -> None:
        """Rows and videos; both are on the disk when this returns."""
        for name in self.plan.streams:
            stream = self.episode.streams[name]
            self.columns[name] = stream.values[shown(stream.t_ns, self.grid).index]
        for camera in self.episode.cameras:
            self._camera(camera)
        for feature in self.plan.features.values():
            if not feature.is_picture:
                self.stats[feature.key] = number_stats(self.columns[feature.key])
                self.arrays[feature.key] = to_column(self.columns[feature.key], feature)
        for key in DEFAULTS:
            self.stats[key] = number_stats(self.columns[key])
            self.arrays[key] = self.columns[key]
        columns = schema(self.plan.features)
        table = v21.table([self.arrays[n] for n in columns.names], columns)
        v21.write_rows(v21.data_file(self.work, self.number), table)

    def _camera(self, camera: str) -> None:
        key = IMAGE_PREFIXES[0] + camera
        frames, grid = self.episode.frames(camera), self.grid
        seen = shown(frames.t_ns, grid)
        self.columns[f"{TIME}.{camera}"] = frames.t_ns[seen.index] - int(grid.t_ns[0])
        self.columns[f"{SEQ}.{camera}"] = frames.seq[seen.index]
        self.columns[f"{REPEATED}.{camera}"] = seen.repeated | frames.repeated[seen.index]
        stats = PictureStats()
        if self.plan.options.pictures == "video":
            path = v21.video_file(self.work, key, self.number)
            pictures = _pictures(frames, seen.index, stats)
            encode_video(path, self.plan.fps, self.plan.options.video, [pictures])
            _FILES.sync_path(path)
            _FILES.sync_path(path.parent)
        else:
            cells = [{"bytes": frames.jpeg(int(i)), "path": None} for i in seen.index]
            self.arrays[key] = pa.array(cells, IMAGE)
            for row in sampled_rows(len(grid)):
                stats.add(frames[int(seen.index[row])])
        self.stats[key] = stats.result()
        self.frames += len(grid)
        if seen.left_out:
            self.notes.append(f"{seen.left_out} pictures of {camera} are shown by no row")
        if repeats := int(seen.repeated.sum()):
            self.notes.append(
                f"{repeats} rows show the picture of {camera} of the row before ({REPEATED}.{camera})"
            )
        if seen.late:
            self.notes.append(
                f"{seen.late} rows are older than the first picture of {camera} and show that one"
            )


def _pictures(
    frames: FrameSeq, index: npt.NDArray[np.int64], stats: PictureStats
) -> Iterator[npt.NDArray[np.uint8]]:
    wanted = set(sampled_rows(len(index)))
    held, picture = -1, None
    for row, at in enumerate(index.tolist()):
        if at != held or picture is None:
            held, picture = at, frames[at]
        if row in wanted:
            stats.add(picture)
        yield picture
