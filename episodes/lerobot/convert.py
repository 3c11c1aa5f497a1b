"""v2.1 to v3.0, directly: rows put together, videos put end to end, nothing encoded again.

Streaming (an episode at a time in memory), parallel, to be killed and run again at any time, and
incremental: into a set that is there, only episodes go that it does not have, into new files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from episodes.errors import ImportRefusedError
from episodes.lerobot import v30
from episodes.lerobot.check import total_notes
from episodes.lerobot.durable import only_writer
from episodes.lerobot.encode import VideoFormat, encode_video
from episodes.lerobot.layout import Dataset
from episodes.lerobot.plan import Facts, Limits, OutFile, assign, scan
from episodes.lerobot.recipe import make_recipe
from episodes.lerobot.remux import put_end_to_end
from episodes.lerobot.report import ConversionReport, VideoCheck, check_rows, check_video
from episodes.lerobot.rows import Written, write_rows
from episodes.lerobot.set_metadata import Addition, known_sources, write_metadata
from episodes.lerobot.staging import Staging
from episodes.lerobot.video import video_frames


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
    StoreLockedError when somebody else writes into ``target``.
    """
    root = Path(target).resolve()
    with only_writer(root):
        return convert_locked(Path(source), root, options or ConvertOptions(), progress)


def convert_locked(
    source: Path, root: Path, options: ConvertOptions, progress: Progress | None = None
) -> ConversionReport:
    """The same for one who holds ``only_writer(root)`` already."""
    staging = Staging(root)
    staging.finish_interrupted()
    return _Conversion(source, root, options, progress, staging).run()


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
        self.report = ConversionReport(str(source), str(root), repairs=[*self.dataset.repairs])
        self.report.repairs += total_notes(self.dataset)

    def run(self) -> ConversionReport:
        facts = self._facts()
        if not facts:
            self.staging.discard()
            return self.report
        self.recipe = make_recipe(self.dataset, facts, self.present, self.root, self.report.repairs)
        lengths = {i: self.dataset.episodes[i].length for i in facts}
        keys = [k for k, f in self.recipe.features.items() if f.dtype == "video"]
        self.data, self.videos = assign(
            facts, lengths, keys, self.fps, self.present, self.options.limits,
            encoded=self.options.encode is not None,
        )  # fmt: skip
        plan = {
            "identities": [f.identity for f in facts.values()],
            "options": asdict(self.options) | {"workers": 0},
            "present": [self.present.episodes, self.present.frames],
            "features": list(self.recipe.features),
        }
        self.report.resumed = self.staging.begin(plan)
        self._write(facts)
        if self.report.errors:
            self.staging.discard()
        self.report.refuse_when_wrong()
        self.staging.publish()
        return self.report

    def _facts(self) -> dict[int, Facts]:
        wanted = sorted(self.dataset.episodes)
        if self.options.episodes is not None:
            wanted = list(dict.fromkeys(self.options.episodes))
            if unknown := [i for i in wanted if i not in self.dataset.episodes]:
                raise ImportRefusedError(f"dataset {self.dataset.root} has no episode {unknown[0]}")
        if not self.options.allow_missing_video:
            self._refuse_missing(wanted)
        facts = scan(
            self.dataset, wanted, self.options.allow_missing_video, self.options.workers,
            lambda done: self._say("episodes looked at", done, len(wanted)),
        )  # fmt: skip
        known = set() if self.present.fresh else known_sources(self.root)
        if known is None:
            self.report.notes.append("the set was not made by Ratchet: every source episode counts as new")
            known = set()
        self.report.skipped = [i for i, f in facts.items() if f.identity in known]
        return {i: f for i, f in facts.items() if f.identity not in known}

    def _refuse_missing(self, wanted: list[int]) -> None:
        """Raises ImportRefusedError that names the first video that is missing, and the way around it."""
        chosen = (self.dataset.episodes[i] for i in wanted)
        missing = [v.path for episode in chosen for v in episode.videos.values() if not v.path.exists()]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ImportRefusedError(
                f"video {missing[0]}{others} is missing",
                "complete the download, or convert without these cameras (--allow-missing-video)",
            )

    def _write(self, facts: dict[int, Facts]) -> None:
        """All files, in parallel; the metadata is made and the rows are checked while videos are copied."""
        videos = [f for each in self.videos.values() for f in each]
        self.report.files = len(self.data) + len(videos)
        self._done, self._total = 0, sum(len(f.parts) for f in (*self.data, *videos))
        with ThreadPoolExecutor(self.options.workers) as pool:
            try:
                rows = {pool.submit(self._file, f): f for f in self.data}
                pictures = {pool.submit(self._video, f): f for f in videos}
                self._wait(rows)
                self._write_metadata(facts)
                started = time.perf_counter()
                check_rows(self.report, self.recipe, self.staging.set, self.data, self._records())
                self.report.checked_s += time.perf_counter() - started
                for check in self._wait(pictures):
                    self.report.take(check)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _wait(self, running: dict[Future[Any], OutFile]) -> list[Any]:
        """The results in the order of the files."""
        for future in as_completed(running):
            future.result()
            self._done += len(running[future].parts)
            self._say("episodes copied", self._done, self._total)
        return [future.result() for future in running]

    def path_of(self, file: OutFile) -> Path:
        at = v30.place(file.number)
        relative = v30.VIDEO_PATH.format(video_key=file.key, **at) if file.key else v30.DATA_PATH.format(**at)
        return self.staging.set / relative

    def _video(self, file: OutFile) -> VideoCheck:
        self._file(file)
        return check_video(self.recipe, file, self.path_of(file))

    def _file(self, file: OutFile) -> None:
        name, path = _name(file), self.path_of(file)
        if self.staging.is_finished(name):
            self.report.files_resumed += 1
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not file.key:
            result: Iterable[Any] = (w.as_row() for w in write_rows(self.recipe, file, path))
        elif self.options.encode is not None:
            result = [encode_video(path, self.fps, self.options.encode, self._pictures(file))]
        else:
            sources = [self.dataset.episodes[p.source].videos[file.key].path for p in file.parts]
            result = [put_end_to_end(path, sources, self.fps)]
        self.staging.finish(name, path, result)

    def _pictures(self, file: OutFile) -> Iterator[Any]:
        height, width = self.recipe.features[file.key].shape[:2]
        for part in file.parts:
            span = self.dataset.episodes[part.source].videos[file.key]
            yield video_frames(span.path, 0.0, part.length, self.fps, (height, width))

    def _records(self) -> Iterator[Written]:
        for file in self.data:
            for row in self.staging.results(_name(file)):
                yield Written(**row)

    def _noted(self) -> Iterator[Written]:
        for record in self._records():
            self.report.episodes[record.source] = record.episode
            yield record

    def _write_metadata(self, facts: dict[int, Facts]) -> None:
        added = Addition(
            self.recipe, facts, self.data, self.videos, self.present, self.options.limits, self.options.encode
        )
        write_metadata(added, (self._noted(), self._records()), self.root, self.staging.set)

    def _say(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(ConvertProgress(what, done, total))


def _name(file: OutFile) -> str:
    return f"{file.key or 'data'}-{file.number:06d}"
