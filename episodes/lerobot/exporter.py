"""Export of episodes to a LeRobot set, v2.1 or v3.0.

Each episode is written as v2.1 has it (rows and a video per camera), beside the destination; for v3.0 these
are then put together by the same code that converts other people's v2.1 sets, packets copied. What was
written of an export that was interrupted is used again; the destination changes only at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from episodes.errors import ImportRefusedError
from episodes.files import FileLayer
from episodes.lerobot import v30
from episodes.lerobot.convert import ConvertOptions, ConvertProgress, convert_locked
from episodes.lerobot.durable import only_writer
from episodes.lerobot.export_episode import Lines, write_episode
from episodes.lerobot.export_plan import ExportOptions as ExportOptions  # part of this module's interface
from episodes.lerobot.export_plan import ExportPlan, make_plan
from episodes.lerobot.recipe import refuse_unlike
from episodes.lerobot.report import ConversionReport
from episodes.lerobot.set_metadata import known_sources
from episodes.lerobot.staging import Staging
from episodes.lerobot.v21 import write_metadata
from episodes.store import EpisodeStore

_FILES = FileLayer()


@dataclass(slots=True)
class ExportReport:
    """``episodes`` maps episode id → index in the set, of those written now; ``skipped`` were there already.
    ``notes`` is what an episode's rows do not show; ``reused`` how many an interrupted export had made."""

    episodes: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    rows: int = 0
    frames: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)
    reused: int = 0
    conversion: ConversionReport | None = None


Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)``."""


def export_lerobot(
    store: EpisodeStore,
    ids: Sequence[str],
    target: Path | str,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the episodes ``ids`` to ``target``; v3.0 also adds those that are new to a set that is there.

    Raises StoreError when episodes do not fit into one set, ImportRefusedError when ``target`` does not, both
    before anything is written; StoreLockedError when somebody else writes into ``target``.
    """
    root, chosen = Path(target).resolve(), options or ExportOptions()
    plan = make_plan(store, ids, chosen)
    with only_writer(root):
        return _Export(store, plan, root, progress).run()


class _Export:
    def __init__(self, store: EpisodeStore, plan: ExportPlan, root: Path, progress: Progress | None) -> None:
        self.store, self.plan, self.root, self.progress = store, plan, root, progress
        self.work = root.with_name(f".{root.name}.export")
        self.report = ExportReport()
        self.direct = plan.options.to == "v2.1"
        if self.direct:
            if (root / "meta" / "info.json").exists():
                raise ImportRefusedError(f"{root} holds a set", "choose another folder, or --to v3.0")
            if root.exists():
                v30.refuse_foreign(root, ())
        else:
            self._look()

    def _look(self) -> None:
        """What the set that is there has already, and whether the rest fits into it."""
        Staging(self.root).finish_interrupted()
        present = v30.look(self.root)
        if present.fresh:
            return
        refuse_unlike(present, self.plan.features, self.plan.fps, "the store", self.root)
        known = known_sources(self.root) or set()
        self.report.skipped = [i for i, identity in self.plan.identities.items() if identity in known]

    def run(self) -> ExportReport:
        there = set(self.report.skipped)
        ids = [i for i in self.plan.identities if i not in there]
        if not ids:
            shutil.rmtree(self.work, ignore_errors=True)
            return self.report
        lines = self._write_all(ids)
        write_metadata(
            self.work, lines, self.plan.features, self.plan.raw, self.plan.fps, self.plan.robot,
            self.plan.tasks_of(ids), quantiles=not self.direct,
        )  # fmt: skip
        lines.remove()
        if self.direct:
            self._publish()
        else:
            self._convert()
        return self.report

    def _write_all(self, ids: Sequence[str]) -> Lines:
        """Every episode into the work folder; the lines of its metadata."""
        lines = Lines(self.work, self.plan)
        tasks = self.plan.tasks_of(ids)
        for number, episode_id in enumerate(ids):
            made = write_episode(
                self.store.read(episode_id), number, self.report.rows, tasks, self.plan, lines
            )
            self.report.reused += made.reused
            self.report.rows += made.length
            self.report.frames += made.frames
            if made.notes:
                self.report.notes[episode_id] = made.notes
            self.report.episodes[episode_id] = number
            self._say(number + 1, len(ids), "episodes")
        lines.keep(len(ids))
        return lines

    def _publish(self) -> None:
        for folder in (self.work, *(p for p in self.work.rglob("*") if p.is_dir())):
            _FILES.sync_path(folder)  # each file is on the disk already
        _FILES.rename(self.work, self.root)  # an empty folder that is there gives way
        _FILES.sync_path(self.root.parent)

    def _convert(self) -> None:
        def say(now: ConvertProgress) -> None:
            self._say(now.done, now.total, now.what)

        options = ConvertOptions(limits=self.plan.options.limits)
        self.report.conversion = convert_locked(self.work, self.root, options, say)
        placed = self.report.conversion.episodes
        self.report.episodes = {i: placed[n] for i, n in self.report.episodes.items()}
        shutil.rmtree(self.work)

    def _say(self, done: int, total: int, what: str) -> None:
        if self.progress is not None:
            self.progress(done, total, what)
