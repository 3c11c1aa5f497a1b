"""One round of learning: select → fine-tune → export → calibrate → judge → publish.

Each stage leaves a file or a directory that appears at once; a round that was interrupted goes on
with the first stage whose result is missing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from episodes.store import EpisodeStore
from learner.bundles import export, fingerprint
from learner.calibrate import calibrate, read_signals
from learner.checkpoint import write_atomic
from learner.config import DataConfig, FinetuneConfig, LearnerConfig
from learner.data import Dataset
from learner.errors import CalibrationError, DataError, GateError
from learner.finetune import finetune
from learner.gate import Decision
from learner.loading import load_dataset
from learner.promotion import Promotion
from learner.rollouts import EvaluateResult, Request
from learner.train import TrainResult
from policies.bundle import Bundle, reissue
from policies.torch_session import load_model

log = logging.getLogger(__name__)

Stage = Literal["select", "finetune", "export", "calibrate", "judge", "publish", "control"]
StageProgress = Callable[[Stage, int, int, float], None]
"""Called with (stage, done, total, loss or 0)."""


@dataclass(frozen=True)
class Selection:
    """Which episodes a round trains on, and from which champion."""

    champion: str
    base: tuple[str, ...]
    corrections: tuple[str, ...]
    dataset: str


@dataclass(frozen=True)
class RoundReport:
    """What a round did. ``control`` is the control arm's evaluation on the same seeds, when it was run.

    ``waiting`` is the share of fine-tuning's time that it waited for data; None when it was not run anew.
    """

    number: int
    champion_before: str
    candidate: str
    verdict: str
    decision: Decision
    champion_after: str
    evaluation: EvaluateResult
    corrections: int
    base_episodes: int
    calibrated: bool
    seconds: dict[str, float]
    control: EvaluateResult | None = None
    control_version: str | None = None
    waiting: float | None = None
    losses: tuple[tuple[int, float], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        out = {**asdict(self), "evaluation": self.evaluation.model_dump(mode="json")}
        out["control"] = self.control.model_dump(mode="json") if self.control else None
        return out


def pending(config: LearnerConfig, store: EpisodeStore) -> int:
    """Corrected episodes that no round has trained on yet."""
    seen: set[str] = set()
    for path in sorted((config.work / "rounds").glob("*/selection.json")):
        seen |= set(json.loads(path.read_text())["corrections"])
    return len(set(store.select(config.corrections_where)) - seen)


def run_round(
    config: LearnerConfig,
    promotion: Promotion,
    *,
    control: bool = False,
    progress: StageProgress | None = None,
) -> RoundReport:
    """Run the next round, or finish the one that was interrupted.

    With ``control`` the same fine-tuning without the corrections is run on the same seeds beside it
    (never published). Raises LearnerError subclasses; what a stage had finished stays.
    """
    return _Round(config, promotion, progress or (lambda *_: None)).run(control)


class _Round:
    """The stages of one round in its folder ``rounds/NNNN``."""

    def __init__(self, config: LearnerConfig, promotion: Promotion, progress: StageProgress) -> None:
        self.config = config
        self.promotion = promotion
        self.progress = progress
        self.number, self.folder = _next_folder(config.work / "rounds")
        self.seconds: dict[str, float] = {}
        self.losses: tuple[tuple[int, float], ...] = ()
        self.waiting: float | None = None
        self._loaded: tuple[Dataset, Dataset] | None = None

    def run(self, control: bool) -> RoundReport:
        with self._timed("select"):
            chosen = self._select()
        champion = self.promotion.bundle(chosen.champion)
        raw = self._train(chosen, champion, self.config.finetune, self.folder / "raw", "finetune")
        arm = self._train_control(chosen, champion) if control else None
        with self._timed("calibrate"):
            candidate = self._calibrate(raw)
        with self._timed("judge"):
            self.progress("judge", 0, 1, 0.0)
            decision, evaluation = self.promotion.judge(candidate, self.folder)
            self.progress("judge", 1, 1, 0.0)
        judged_arm = self._judge_control(arm, evaluation) if arm is not None else None
        if decision.promoted:
            with self._timed("publish"):
                self.promotion.publish(candidate)
        report = RoundReport(
            number=self.number,
            champion_before=chosen.champion,
            candidate=candidate.version,
            verdict=decision.verdict,
            decision=decision,
            champion_after=self.promotion.ledger.champion() or chosen.champion,
            evaluation=evaluation,
            corrections=len(chosen.corrections),
            base_episodes=len(chosen.base),
            calibrated=candidate.manifest.monitors is not None,
            seconds=dict(self.seconds),
            control=judged_arm,
            control_version=arm.version if arm is not None else None,
            losses=self.losses,
            waiting=self.waiting,
        )
        _write_json(self.folder / "report.json", report.to_json())
        log.info("round.done number=%d verdict=%s", self.number, decision.verdict)
        return report

    def _select(self) -> Selection:
        path = self.folder / "selection.json"
        if not path.exists():
            champion = self.promotion.ledger.champion()
            if champion is None:
                raise GateError("there is no champion to fine-tune", "train and crown a first bundle")
            with EpisodeStore.open(self.config.store, create=False, mode="r") as store:
                base = tuple(sorted(store.select(self.config.base_where)))
                corrections = tuple(sorted(store.select(self.config.corrections_where)))
                if not base:
                    raise DataError(f"no episode fulfils {self.config.base_where!r}", "record demonstrations")
                dataset = fingerprint(store, [*base, *corrections])
            _write_json(path, asdict(Selection(champion, base, corrections, dataset)))
        raw = json.loads(path.read_text())
        return Selection(raw["champion"], tuple(raw["base"]), tuple(raw["corrections"]), raw["dataset"])

    def _data(self, chosen: Selection, champion: Bundle) -> tuple[Dataset, Dataset]:
        if self._loaded is None:
            wanted = self.config.finetune.train.data
            data = _like_champion(wanted, champion)
            with EpisodeStore.open(self.config.store, create=False, mode="r") as store:
                base = load_dataset(store, chosen.base, data)
                self._loaded = base, load_dataset(store, chosen.corrections, data, trim=True)
        return self._loaded

    def _train(
        self, chosen: Selection, champion: Bundle, config: FinetuneConfig, out: Path, stage: Stage
    ) -> Bundle:
        if out.exists():
            return Bundle.open(out, self.promotion.trust)
        with self._timed(stage):
            base, corrections = self._data(chosen, champion)
            model, normaliser = load_model(champion)
            result = finetune(
                model,
                normaliser.stats,
                base,
                corrections if config.corrections else None,
                config,
                folder=out.with_name(out.name + ".training"),
                progress=lambda step, steps, loss: self.progress(stage, step, steps, loss),
            )
        self._track(result, config, stage)
        if stage == "finetune":
            self.losses, self.waiting = result.losses, result.waiting
        with self._timed("export"):
            self.progress("export", 0, 1, 0.0)
            bundle = export(
                result,
                base,
                out,
                self.promotion.key,
                name=champion.manifest.name,
                config=config.train,
                parent=champion,
                dataset_id=chosen.dataset,
                details={
                    "kind": "finetune" if config.corrections else "control",
                    "corrections": len(chosen.corrections) if config.corrections else 0,
                },
            )
            self.progress("export", 1, 1, 0.0)
        return bundle

    def _calibrate(self, raw: Bundle) -> Bundle:
        out = self.folder / "candidate"
        if out.exists():
            return Bundle.open(out, self.promotion.trust)
        count = self.config.calibration_rollouts
        if count == 0:
            return raw
        self.progress("calibrate", 0, 1, 0.0)
        signals = self.folder / "signals.npz"
        seeds = self.config.seeds
        first = seeds.calibrate + (self.number - 1) * count % (seeds.stride - count)
        request = Request(raw.path, first, count, signals=signals)
        result = self.promotion.rollouts.run(request, self.folder / "calibrate.json")
        self.progress("calibrate", 1, 1, 0.0)
        try:
            monitors = calibrate(read_signals(signals))
        except CalibrationError as error:
            log.warning("round.not_calibrated reason=%s", error)
            return raw
        evaluation: dict[str, Any] = {
            "success_rate": result.success_rate,
            "interval": list(result.interval),
            "rollouts": count,
        }
        return reissue(raw, out, self.promotion.key, monitors=monitors, evaluation=evaluation)

    def _train_control(self, chosen: Selection, champion: Bundle) -> Bundle:
        """The same fine-tuning without the corrections: never published."""
        without = self.config.finetune.model_copy(update={"corrections": False})
        return self._train(chosen, champion, without, self.folder / "control", "control")

    def _judge_control(self, arm: Bundle, judged: EvaluateResult) -> EvaluateResult:
        """The control arm on the seeds the candidate was judged on."""
        first = min(e.seed for e in judged.episodes)
        request = Request(arm.path, first, len(judged.episodes))
        return self.promotion.rollouts.run(request, self.folder / "control.json")

    def _track(self, result: TrainResult, config: FinetuneConfig, stage: Stage) -> None:
        tracker = self.promotion.tracker
        if tracker is not None:
            tags = {"round": self.number, "stage": stage}
            with tracker.run(f"round {self.number} {stage}", config.model_dump(mode="json"), tags) as run:
                run.metrics("loss", result.losses)
                run.metrics("samples_per_s", [(config.train.steps, result.samples_per_s)])

    @contextmanager
    def _timed(self, stage: str) -> Any:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


def _next_folder(rounds: Path) -> tuple[int, Path]:
    """The first round without a report: an interrupted one, or a new one."""
    number = 1
    while (rounds / f"{number:04d}" / "report.json").exists():
        number += 1
    folder = rounds / f"{number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    return number, folder


def _like_champion(data: DataConfig, champion: Bundle) -> DataConfig:
    """The champion's cameras and picture size, whatever the configuration says."""
    cameras = champion.manifest.cameras
    sizes = {(c.height, c.width) for c in cameras}
    update: dict[str, Any] = {"cameras": tuple(c.name for c in cameras)}
    if len(sizes) == 1:
        update["image_size"] = sizes.pop()
    return data.model_copy(update=update)


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, default=str).encode())
