"""v2.1 to v3.0, directly: rows put together, videos put end to end packet by packet.

Streaming (an episode at a time in memory), parallel, to be killed and run again at any time, and
incremental: into a set that is there, only episodes go that it does not have, into new files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from episodes.errors import ImportRefusedError
from episodes.lerobot import v30
from episodes.lerobot.capture import TIME
from episodes.lerobot.encode import VideoFormat, encode_video
from episodes.lerobot.layout import Dataset
from episodes.lerobot.metadata import Feature, json_lines
from episodes.lerobot.plan import ON_GRID_S, Facts, Limits, OutFile, assign, scan, usable_features
from episodes.lerobot.remux import Joiner
from episodes.lerobot.report import ConversionReport, check_set
from episodes.lerobot.rows import Recipe, SourceStats, Written, write_rows
from episodes.lerobot.staging import Staging
from episodes.lerobot.stats import QUANTILES, Total
from episodes.lerobot.tables import SCALAR_DTYPES
from episodes.lerobot.video import video_frames
from episodes.lock import WriterLock

SOURCES = "meta/ratchet_sources.jsonl"
"""Which source episode became which: what makes a conversion incremental. LeRobot does not look at it."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """``episodes``: which (default all). ``encode``: encode videos again instead of copying packets.
    ``allow_missing_video``: leave out cameras with missing videos. ``workers``: threads."""

    episodes: tuple[int, ...] | None = None
    encode: VideoFormat | None = None
    allow_missing_video: bool = False
    limits: Limits = field(default_factory=Limits)
    workers: int = 2


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """Where a conversion stands: ``done`` of ``total`` in units of ``what``."""

    what: str
    done: int
    total: int


Progress = Callable[[ConvertProgress], None]


def convert_v30(
    source: Path | str,
    target: Path | str,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert the v2.1 set in ``source`` to v3.0 in ``target``, or add what is new to the set there.

    Raises ImportRefusedError naming what cannot be converted, before ``target`` is changed;
    StoreLockedError when another conversion into ``target`` runs.
    """
    root = Path(target)
    root.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(root / ".ratchet-lock")
    try:
        staging = Staging(root)
        staging.finish_interrupted()
        report = _Conversion(Path(source), root, options or ConvertOptions(), progress, staging).run()
    finally:
        (root / ".ratchet-lock").unlink(missing_ok=True)
        lock.release()
        if not any(root.iterdir()):
            root.rmdir()
    return report


class _Conversion:
    def __init__(
        self, source: Path, root: Path, options: ConvertOptions, progress: Progress | None, staging: Staging
    ) -> None:
        self.options, self.progress, self.staging, self.root = options, progress, staging, root
        self.dataset = Dataset(source)
        if self.dataset.version != "v2.1":
            raise ImportRefusedError(f"{source} is a {self.dataset.version} set", "only v2.1 is converted")
        if self.dataset.fps != int(self.dataset.fps):
            raise ImportRefusedError(
                f"{source} has {self.dataset.fps} frames a second; v3.0 counts whole ones",
                "import it instead",
            )
        self.fps = int(self.dataset.fps)
        self.present = v30.look(root)
        self.report = ConversionReport(str(source), str(root), repairs=list(self.dataset.repairs))

    def run(self) -> ConversionReport:
        facts = self._facts()
        if not facts:
            return self.report
        self.recipe = self._recipe(facts)
        lengths = {i: self.dataset.episodes[i].length for i in facts}
        keys = [k for k, f in self.recipe.features.items() if f.dtype == "video"]
        self.data, self.videos = assign(
            facts, lengths, keys, self.fps, self.present, self.options.limits,
            encoded=self.options.encode is not None,
        )  # fmt: skip
        plan = {
            "fingerprints": [f.fingerprint for f in facts.values()],
            "options": asdict(self.options) | {"workers": 0},
            "present": [self.present.episodes, self.present.frames],
            "features": list(self.recipe.features),
        }
        self.report.resumed = self.staging.begin(plan)
        self._write_files()
        self._write_metadata(facts)
        check_set(self.report, self.recipe, self.staging.set, self.data, self.videos, self._records())
        self.report.refuse_when_wrong()
        self.staging.publish()
        return self.report

    def _facts(self) -> dict[int, Facts]:
        wanted = sorted(self.dataset.episodes)
        if self.options.episodes is not None:
            wanted = list(dict.fromkeys(self.options.episodes))
            if unknown := [i for i in wanted if i not in self.dataset.episodes]:
                raise ImportRefusedError(f"dataset {self.dataset.root} has no episode {unknown[0]}")
        facts = scan(
            self.dataset, wanted, self.options.allow_missing_video, self.options.workers,
            lambda done: self._say("episodes looked at", done, len(wanted)),
        )  # fmt: skip
        known = self._known()
        self.report.skipped = [i for i, f in facts.items() if f.fingerprint in known]
        return {i: f for i, f in facts.items() if f.fingerprint not in known}

    def _known(self) -> set[str]:
        path = self.root / SOURCES
        if self.present.fresh:
            return set()
        if not path.exists():
            self.report.notes.append("the set was not made by Ratchet: every source episode counts as new")
            return set()
        return {str(row.get("fingerprint")) for _, row in json_lines(path)}

    def _recipe(self, facts: dict[int, Facts]) -> Recipe:
        keys = usable_features(self.dataset, facts, self.report.repairs)
        features = {k: self.dataset.features[k] for k in keys}
        for feature in list(features.values()):
            if not feature.is_picture and feature.dtype not in SCALAR_DTYPES:
                self.report.repairs.append(f"{feature.key} is left out: dtype {feature.dtype} has no column")
                del features[feature.key]
        off = max(f.off_grid_s for f in facts.values())
        capture = TIME not in features and off > ON_GRID_S
        if capture:
            features[TIME] = Feature(TIME, "int64", (1,), ())
        if not self.present.fresh:
            features, capture = self._conform(features, capture)
        if off > ON_GRID_S:
            kept = (
                f"the originals are kept in {TIME}" if TIME in features else "the set has no place for them"
            )
            self.report.repairs.append(f"timestamps are up to {off:.3f} s off index/fps: set to it, {kept}")
        tasks = dict(self.present.tasks)
        listed = (self.dataset.episodes[i].tasks or ("unnamed task",) for i in facts)
        for texts in ([t for _, t in sorted(self.dataset.tasks.items())], *listed):
            for text in texts:
                tasks.setdefault(text, len(tasks))
        return Recipe(self.dataset, features, self.fps, capture, tasks, SourceStats(self.dataset.root))

    def _conform(self, features: dict[str, Feature], capture: bool) -> tuple[dict[str, Feature], bool]:
        """The features in the order of the set that is there. Raises ImportRefusedError when they differ."""
        there = {k: f for k, f in self.present.features.items() if k in self.present.info["features"]}
        there = {k: f for k, f in there.items() if k not in v30.default_features()}
        if TIME in there and TIME not in features:
            features[TIME], capture = Feature(TIME, "int64", (1,), ()), True
        if TIME not in there and capture:
            del features[TIME]
            capture = False
        for key in {*there, *features}:
            one, two = there.get(key), features.get(key)
            if one is None or two is None or (one.dtype, one.shape) != (two.dtype, two.shape):
                raise ImportRefusedError(
                    f"{key} is {_words(two)} in {self.dataset.root} and {_words(one)} in {self.root}",
                    "the sets cannot become one",
                )
        if self.present.info.get("fps") != self.fps:
            raise ImportRefusedError(f"{self.root} has {self.present.info.get('fps')} frames a second")
        return {k: features[k] for k in there}, capture

    # ---- the files ----------------------------------------------------------------------------

    def _write_files(self) -> None:
        jobs = [(f, self._name(f)) for f in [*self.data, *(f for v in self.videos.values() for f in v)]]
        todo = [(f, name) for f, name in jobs if not self.staging.is_finished(name)]
        done = sum(len(f.parts) for f, _ in jobs) - sum(len(f.parts) for f, _ in todo)
        total = sum(len(f.parts) for f, _ in jobs)
        self.report.files, self.report.files_resumed = len(jobs), len(jobs) - len(todo)
        with ThreadPoolExecutor(self.options.workers) as pool:
            running: dict[Future[None], OutFile] = {pool.submit(self._write, f, n): f for f, n in todo}
            try:
                for future in as_completed(running):
                    future.result()
                    done += len(running[future].parts)
                    self._say("episodes copied", done, total)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _name(self, file: OutFile) -> str:
        return f"{file.key or 'data'}-{file.number:06d}"

    def path_of(self, file: OutFile) -> Path:
        at = v30.place(file.number)
        relative = v30.VIDEO_PATH.format(video_key=file.key, **at) if file.key else v30.DATA_PATH.format(**at)
        return self.staging.set / relative

    def _write(self, file: OutFile, name: str) -> None:
        path = self.path_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not file.key:
            result: Iterable[Any] = (asdict(w) for w in write_rows(self.recipe, file, path))
        elif self.options.encode is not None:
            result = [encode_video(path, self.fps, self.options.encode, self._pictures(file))]
        else:
            with Joiner(path, self.fps) as joiner:
                for part in file.parts:
                    joiner.append(self.dataset.episodes[part.source].videos[file.key].path)
            result = [joiner.frames]
        self.staging.finish(name, path, result)

    def _pictures(self, file: OutFile) -> Iterator[Any]:
        height, width = self.recipe.features[file.key].shape[:2]
        for part in file.parts:
            span = self.dataset.episodes[part.source].videos[file.key]
            yield video_frames(span.path, 0.0, part.length, self.fps, (height, width))

    def _records(self) -> Iterator[Written]:
        for file in self.data:
            for row in self.staging.results(self._name(file)):
                yield Written(**row)

    # ---- the metadata -------------------------------------------------------------------------

    def _write_metadata(self, facts: dict[int, Facts]) -> None:
        every = {**self.recipe.features, **v30.default_features()}
        set_ = self.staging.set
        total = Total()
        total.add(self.present.stats)
        known: dict[str, bool] = {}
        for record in self._records():
            total.add(record.stats)
            for key, stats in record.stats.items():
                known[key] = known.get(key, True) and set(QUANTILES) <= set(stats)
        schema = self.present.schema or v30.episodes_schema(every, known)
        rows = self._episode_rows()
        v30.write_episodes(set_, rows, schema, self.present.episode_files)
        v30.write_tasks(set_ / "meta/tasks.parquet", self.recipe.tasks)
        v30.write_json(set_ / "meta/stats.json", total.result())
        v30.write_json(set_ / "meta/info.json", self._info(facts))
        self._write_sources(facts)
        self.report.episodes = {r.source: r.episode for r in self._records()}

    def _episode_rows(self) -> Iterator[dict[str, Any]]:
        spans = {key: _spans(files) for key, files in self.videos.items()}
        where = _spans(self.data)
        for record, (file, _) in zip(self._records(), where, strict=True):
            row: dict[str, Any] = {
                "episode_index": record.episode, "tasks": record.tasks, "length": record.length,
                "dataset_from_index": record.first_index,
                "dataset_to_index": record.first_index + record.length,
                **{f"data/{k}": v for k, v in v30.place(file).items()},
            }  # fmt: skip
            for key, each in spans.items():
                number, first = next(each)
                row |= {f"videos/{key}/{k}": v for k, v in v30.place(number).items()}
                row[f"videos/{key}/from_timestamp"] = first / self.fps
                row[f"videos/{key}/to_timestamp"] = (first + record.length) / self.fps
            for key, stats in record.stats.items():
                row |= {f"stats/{key}/{name}": value for name, value in stats.items()}
            yield row

    def _info(self, facts: dict[int, Facts]) -> dict[str, Any]:
        frames = sum(self.dataset.episodes[i].length for i in facts)
        episodes = self.present.episodes + len(facts)
        if not self.present.fresh:
            info = dict(self.present.info)
        else:
            raw = self.dataset.info
            info = {
                "codebase_version": "v3.0", "robot_type": raw.get("robot_type"),
                "chunks_size": v30.CHUNK_FILES, "fps": self.fps,
                "data_files_size_in_mb": self.options.limits.data_mb,
                "video_files_size_in_mb": self.options.limits.video_mb,
                "data_path": v30.DATA_PATH, "video_path": v30.VIDEO_PATH if self.videos else None,
                "features": v30.described(raw["features"], self.recipe.features.values(), self.fps),
            }  # fmt: skip
            for key in self.videos:
                if self.options.encode is not None:
                    info["features"][key]["info"] = self.options.encode.info(
                        self.recipe.features[key].shape, self.fps
                    )
        return info | {
            "total_episodes": episodes, "total_frames": self.present.frames + frames,
            "total_tasks": len(self.recipe.tasks), "splits": {"train": f"0:{episodes}"},
        }  # fmt: skip

    def _write_sources(self, facts: dict[int, Facts]) -> None:
        path = self.staging.set / SOURCES
        with path.open("w") as file:
            if (self.root / SOURCES).exists():
                file.write((self.root / SOURCES).read_text())
            for number, (index, fact) in enumerate(facts.items()):
                row = {
                    "episode_index": self.present.episodes + number, "source": self.dataset.root.name,
                    "source_episode": index, "fingerprint": fact.fingerprint,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")

    def _say(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(ConvertProgress(what, done, total))


def _spans(files: list[OutFile]) -> Iterator[tuple[int, int]]:
    """File number and first frame of each episode, in order."""
    for file in files:
        for part in file.parts:
            yield file.number, part.first_frame


def _words(feature: Feature | None) -> str:
    return "absent" if feature is None else f"{feature.dtype} {feature.shape}"
