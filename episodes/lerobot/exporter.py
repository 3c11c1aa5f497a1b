"""Export of episodes to a LeRobot set, v2.1 or v3.0.

Each episode is written as v2.1 has it (rows and a video per camera); for v3.0 these are then put together
by the same code that converts other people's v2.1 sets, packets copied. What was written of an export
that was interrupted is used again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.errors import ImportRefusedError, StoreError
from episodes.lerobot import v21
from episodes.lerobot.capture import REPEATED, SEQ, TIME
from episodes.lerobot.convert import ConvertOptions, convert_v30
from episodes.lerobot.encode import VideoFormat, encode_video
from episodes.lerobot.grid import Grid, rows_of, shown
from episodes.lerobot.job import IMAGE_PREFIXES
from episodes.lerobot.metadata import Feature
from episodes.lerobot.plan import Limits
from episodes.lerobot.report import ConversionReport
from episodes.lerobot.stats import PictureStats, number_stats, sampled_rows
from episodes.lerobot.tables import DEFAULTS, IMAGE, bookkeeping, schema, to_column
from episodes.reader import Episode, FrameSeq
from episodes.store import EpisodeStore


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """``fps``: rows a second (default: the episodes' own). ``fill``: repeat ticks where some are missing.
    ``pictures``: "video", or "image": the stored JPEGs in the data files, byte for byte.
    ``streams``: which (default: the actions and observations of every tick)."""

    to: Literal["v2.1", "v3.0"] = "v3.0"
    fps: int | None = None
    fill: bool = False
    pictures: Literal["video", "image"] = "video"
    video: VideoFormat = field(default_factory=VideoFormat)
    streams: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class ExportReport:
    """``episodes`` maps episode id → index in the set; ``notes`` what an episode's rows do not show."""

    episodes: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    frames: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)
    reused: int = 0
    conversion: ConversionReport | None = None


def export_lerobot(
    store: EpisodeStore,
    ids: Sequence[str],
    target: Path | str,
    options: ExportOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Export the episodes ``ids`` to ``target``; v3.0 also adds to a set that is there.

    Raises StoreError when episodes do not fit into one set, ImportRefusedError when ``target`` does not.
    """
    root, chosen = Path(target).absolute(), options or ExportOptions()
    if not ids:
        raise StoreError("no episode chosen", "see `ratchet episodes ls`")
    direct = chosen.to == "v2.1"
    if direct and (root / "meta" / "info.json").exists():
        raise ImportRefusedError(f"{root} holds a set", "choose another folder")
    work = root if direct else root.with_name(f".{root.name}.export")
    export = _Export(store, ids, work, chosen, progress)
    report = export.run(quantiles=not direct)
    if not direct:
        report.conversion = convert_v30(work, root, ConvertOptions(limits=chosen.limits))
        report.episodes = {
            id_: report.conversion.episodes[i]
            for id_, i in report.episodes.items()
            if i in report.conversion.episodes
        }
        shutil.rmtree(work)
    return report


class _Export:
    def __init__(
        self,
        store: EpisodeStore,
        ids: Sequence[str],
        root: Path,
        options: ExportOptions,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.store, self.ids, self.root, self.options, self.progress = store, ids, root, options, progress
        first = store.read(ids[0])
        self.fps = options.fps or round(first.meta.fps)
        if options.fps is None and abs(first.meta.fps - self.fps) > 1e-6:
            raise StoreError(f"episode {first.id} has {first.meta.fps:g} ticks a second", "give --fps")
        self.streams = self._streams(first)
        self.features, self.raw = self._features(first)
        self.columns = schema(self.features)
        self.tasks: dict[str, int] = {}
        self.report = ExportReport()

    def run(self, quantiles: bool) -> ExportReport:
        lines = self.root / ".lines"
        lines.mkdir(parents=True, exist_ok=True)
        robots = set()
        for number, episode_id in enumerate(self.ids):
            episode = self.store.read(episode_id)
            robots.add(episode.meta.provenance.get("robot"))
            self.tasks.setdefault(episode.meta.task, len(self.tasks))
            self._episode(episode, number, lines / f"{number:06d}.json")
            self.report.episodes[episode_id] = number
            if self.progress is not None:
                self.progress(number + 1, len(self.ids))
        robot = robots.pop() if len(robots) == 1 else None
        every = (self._line(lines / f"{n:06d}.json") for n in range(len(self.ids)))
        v21.write_metadata(self.root, every, self.features, self.raw, self.fps, robot, self.tasks, quantiles)
        shutil.rmtree(lines)
        return self.report

    @staticmethod
    def _line(path: Path) -> v21.Line:
        return v21.Line(**json.loads(path.read_bytes())["line"])

    def _streams(self, first: Episode) -> tuple[str, ...]:
        if self.options.streams is not None:
            return self.options.streams
        wanted = ("action", "observation", "next")
        return tuple(n for n in first.streams if n.split(".")[0] in wanted or first.meta.kind == "import")

    def _features(self, first: Episode) -> tuple[dict[str, Feature], dict[str, Any]]:
        features: dict[str, Feature] = {}
        raw: dict[str, Any] = {}
        for name in self.streams:
            if name not in first.meta.streams:
                raise StoreError(f"episode {first.id} has no stream {name}", "see `ratchet episodes show`")
            meta = first.meta.streams[name]
            features[name] = Feature(name, meta.dtype, tuple(meta.shape) or (1,), meta.names)
            raw[name] = {"names": list(meta.names) or None} | ({"unit": meta.unit} if meta.unit else {})
        own: list[tuple[str, str]] = [(TIME, "int64"), (SEQ, "int64"), (REPEATED, "bool")]
        for camera, seen in first.meta.cameras.items():
            key = IMAGE_PREFIXES[0] + camera
            features[key] = Feature(key, self.options.pictures, (seen.height, seen.width, 3), ())
            if self.options.pictures == "video":
                raw[key] = {"info": self.options.video.info(features[key].shape, self.fps)}
            own += [
                (f"{TIME}.{camera}", "int64"),
                (f"{SEQ}.{camera}", "int64"),
                (f"{REPEATED}.{camera}", "bool"),
            ]
        return features | {k: Feature(k, dtype, (1,), ()) for k, dtype in own}, raw

    def _episode(self, episode: Episode, number: int, done: Path) -> None:
        self._refuse_different(episode)
        identity = {
            "digest": episode.digest,
            "options": asdict(self.options),
            "features": list(self.features),
            "place": [number, self.report.rows, self.tasks[episode.meta.task]],
        }
        if done.exists():
            known = json.loads(done.read_bytes())
            if known["identity"] == json.loads(json.dumps(identity)):
                self.report.reused += 1
                self.report.rows += known["line"]["length"]
                return
        grid = rows_of(episode, self.fps, self.options.fill)
        line = v21.Line(number, len(grid), [episode.meta.task], {})
        notes = [f"{grid.left_out} ticks are shown by no row"] if grid.left_out else []
        columns = bookkeeping(len(grid), self.fps, number, self.report.rows, self.tasks[episode.meta.task])
        columns |= _times(grid)
        arrays: dict[str, Any] = {}
        for name in self.streams:
            stream = episode.streams[name]
            columns[name] = stream.values[shown(stream.t_ns, grid).index]
        for camera in episode.cameras:
            notes += self._camera(episode, camera, grid, line, columns, arrays)
        for feature in self.features.values():
            if not feature.is_picture:
                line.stats[feature.key] = number_stats(columns[feature.key])
                arrays[feature.key] = to_column(columns[feature.key], feature)
        for key in DEFAULTS:
            line.stats[key] = number_stats(columns[key])
            arrays[key] = columns[key]
        table = v21.table([arrays[n] for n in self.columns.names], self.columns)
        v21.write_rows(v21.data_file(self.root, number), table)
        if notes:
            self.report.notes[episode.id] = notes
        self.report.rows += len(grid)
        done.write_text(json.dumps({"identity": identity, "line": asdict(line)}))

    def _camera(
        self,
        episode: Episode,
        camera: str,
        grid: Grid,
        line: v21.Line,
        columns: dict[str, npt.NDArray[Any]],
        arrays: dict[str, Any],
    ) -> list[str]:
        key = IMAGE_PREFIXES[0] + camera
        frames = episode.frames(camera)
        if not len(frames):
            raise StoreError(f"episode {episode.id} has no picture of camera {camera}", "leave it out")
        seen = shown(frames.t_ns, grid)
        start = int(grid.t_ns[0])
        columns[f"{TIME}.{camera}"] = frames.t_ns[seen.index] - start
        columns[f"{SEQ}.{camera}"] = frames.seq[seen.index]
        columns[f"{REPEATED}.{camera}"] = seen.repeated | frames.repeated[seen.index]
        stats = PictureStats()
        if self.options.pictures == "video":
            pictures = _pictures(frames, seen.index, stats)
            encode_video(
                v21.video_file(self.root, key, line.episode), self.fps, self.options.video, [pictures]
            )
        else:
            cells = [{"bytes": frames.jpeg(int(i)), "path": None} for i in seen.index]
            arrays[key] = pa.array(cells, IMAGE)
            for row in sampled_rows(len(grid)):
                stats.add(frames[int(seen.index[row])])
        line.stats[key] = stats.result()
        self.report.frames += len(grid)
        notes = []
        if seen.left_out:
            notes.append(f"{seen.left_out} pictures of {camera} are shown by no row")
        if repeats := int(seen.repeated.sum()):
            notes.append(
                f"{repeats} rows show the picture of {camera} of the row before ({REPEATED}.{camera})"
            )
        if seen.late:
            notes.append(f"{seen.late} rows are older than the first picture of {camera} and show that one")
        return notes

    def _refuse_different(self, episode: Episode) -> None:
        mine, _ = self._features(episode)
        if {k: (f.dtype, f.shape) for k, f in mine.items()} != {
            k: (f.dtype, f.shape) for k, f in self.features.items()
        }:
            raise StoreError(
                f"episode {episode.id} has other streams or cameras than {self.ids[0]}",
                "choose episodes that are alike (--where)",
            )


def _times(grid: Grid) -> dict[str, npt.NDArray[Any]]:
    return {TIME: grid.t_ns - grid.t_ns[0], SEQ: grid.seq, REPEATED: grid.repeated}


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
