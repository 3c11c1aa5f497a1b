"""One training run of `ratchet train`: plan, read, train, export, register; interrupted and continued."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict, ValidationError

from episodes.store import EpisodeStore
from learner.bundles import export, fingerprint
from learner.checkpoint import write_atomic
from learner.config import TrainConfig
from learner.data import Dataset
from learner.described import RobotDescription, describe
from learner.errors import DataError, TrackingError
from learner.loader.mix import Source, choose, parts_of
from learner.loading import load_dataset
from learner.model import act_config
from learner.tracking import Run
from learner.train import TrainResult, train
from policies.bundle import Bundle
from policies.keys import KeyPair, ensure_key
from tools.console import say
from tools.errors import UsageError
from tools.offline import DIGEST_CHARACTERS, TRAINED_ON
from tools.progress import bar
from tools.registry import Registry

PLAN_FILE = "run.json"
_FLUSH_S = 5.0


class Plan(BaseModel):
    """What a run trains on and how: kept beside its checkpoints, so that it is continued as it was begun."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    where: str
    episodes: tuple[str, ...]
    config: TrainConfig
    name: str
    mix: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Data:
    """The episodes of a run in memory, whose they are, and which they are."""

    samples: Dataset
    robot: RobotDescription
    fingerprint: str
    digests: list[str]


@dataclass(frozen=True)
class Trained:
    """A finished run: its bundle, and what it became in the registry (None: not registered)."""

    bundle: Bundle
    result: TrainResult
    standing: str | None


def training_folder(out: Path) -> Path:
    """Where the checkpoints of the run that makes ``out`` are."""
    return out.with_name(out.name + ".training")


def new_plan(
    store: Path, where: str, config: TrainConfig, name: str, out: Path, mix: Sequence[tuple[float, str]] = ()
) -> Plan:
    """A fresh run; ``mix`` holds (weight, SQL) of each source instead of ``where``.

    Raises UsageError when one is unfinished already, or nothing is selected.
    """
    folder = training_folder(out)
    if (folder / PLAN_FILE).exists():
        raise UsageError(f"an unfinished run is in {folder}; continue it with --resume, or delete the folder")
    with EpisodeStore.open(store, create=False, mode="r") as opened:
        # By name, not by when they were recorded: lockstep recorders race, and a seed shall mean one order.
        sources = choose(mix, opened.select)
        chosen = [name for s in sources for name in s.episodes] or sorted(opened.select(where))
    if not chosen:
        raise UsageError(f"no episode of {store} fulfils {where!r}; see `ratchet episodes ls`")
    if mix:
        where = "; ".join(f"{weight:g} × {condition}" for weight, condition in mix)
    return Plan(
        store=store.absolute(), where=where, episodes=tuple(chosen), config=config, name=name, mix=sources
    )


def stored_plan(out: Path) -> Plan:
    """The plan of the unfinished run for ``out``. Raises UsageError when there is none."""
    path = training_folder(out) / PLAN_FILE
    try:
        return Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"no unfinished run for {out}; start it without --resume") from None
    except ValidationError as error:
        raise UsageError(
            f"{path} cannot be used ({error.errors()[0]['msg']}); delete {path.parent} and start afresh"
        ) from None


def run(plan: Plan, out: Path, keys: Path, registry: AbstractContextManager[Registry] | None) -> Trained:
    """Train, export to ``out``, register. Raises StoppedError when interrupted (a checkpoint is kept).

    ``registry`` is opened only once the data have been read: making one takes some seconds.
    """
    key = ensure_key(keys)
    say(f"reading {len(plan.episodes)} episodes of {plan.store}")
    with EpisodeStore.open(plan.store, create=False, mode="r") as store:
        data = Data(
            _load(store, plan),
            describe(store, plan.episodes),
            fingerprint(store, plan.episodes),
            [store.read(name).digest[:DIGEST_CHARACTERS] for name in plan.episodes],
        )
    act_config(data.samples, plan.config.model)  # refuses what does not fit, before anything is written
    write_atomic(training_folder(out) / PLAN_FILE, plan.model_dump_json(indent=1).encode())
    if registry is None:
        bundle, result = _train_and_export(plan, out, key, data, None)
        standing = None
    else:
        with registry as opened:
            settings = plan.config.model_dump(mode="json")
            with opened.tracker.run(f"train {out.name}", settings, {"where": plan.where}) as record:
                bundle, result = _train_and_export(plan, out, key, data, record)
            why = f"trained on {len(plan.episodes)} episodes"
            standing = opened.add(bundle, why=why, run_id=record.id)
    shutil.rmtree(training_folder(out), ignore_errors=True)
    return Trained(bundle, result, standing)


def _load(store: EpisodeStore, plan: Plan) -> Dataset:
    try:
        return load_dataset(store, plan.episodes, plan.config.data)
    except DataError as error:
        if "set gaps to split" not in error.remedy:
            raise
        raise UsageError(
            f"{error.what}; leave it out with --where, or cut episodes there with --set data.gaps=split, or "
            "take longer steps for granted with --set data.max_gap_ticks=3"
        ) from error


def _train_and_export(
    plan: Plan, out: Path, key: KeyPair, data: Data, record: Run | None
) -> tuple[Bundle, TrainResult]:
    points = _Points(record)
    with _interruptible() as stop, bar("training", plan.config.steps, "steps") as update:

        def progress(step: int, steps: int, loss: float) -> None:
            update(step, f"loss {loss:.4f}")
            points.add(step, loss)

        parts = parts_of(data.samples, plan.mix, plan.config.batch) if plan.mix else None
        result = train(
            data.samples,
            plan.config,
            parts=parts,
            folder=training_folder(out),
            progress=progress,
            stop=stop,
        )
    points.flush()
    say("exporting: safetensors, ONNX fp32, ONNX int8, and comparing them")
    bundle = export(
        result,
        data.samples,
        out,
        key,
        name=plan.name,
        config=plan.config,
        dataset_id=data.fingerprint,
        details={"kind": "train", "where": plan.where, TRAINED_ON: data.digests},
        meta=data.robot.meta(),
    )
    return bundle, result


class _Points:
    """Losses on their way to the tracking database, some at a time. Training goes on without it."""

    def __init__(self, record: Run | None) -> None:
        self._record = record
        self._waiting: list[tuple[int, float]] = []
        self._flushed = time.monotonic()

    def add(self, step: int, loss: float) -> None:
        self._waiting.append((step, loss))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        try:
            if self._record is not None and self._waiting:
                self._record.metrics("loss", self._waiting)
        except TrackingError as error:
            self._record = None
            say(f"warning: losses are no longer tracked: {error}")
        self._waiting = []
        self._flushed = time.monotonic()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (or SIGTERM) asks training to leave off after its step; a second one ends it at once."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping after this step; once more ends it at once, without a checkpoint")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, old in before.items():
            signal.signal(number, old)
