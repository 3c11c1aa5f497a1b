"""Training an ACT policy: a fixed number of steps, resumable to the bit, stopping at a batch gone wrong.

Every random draw (samples, jitter, dropout, latent) is a function of (seed, step), so a resumed run
needs weights and optimiser state only, and continues as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from learner.average import WeightAverage, batchnorms
from learner.checkpoint import CheckpointWriter, load_checkpoint
from learner.compiled import compiled
from learner.config import TrainConfig
from learner.data import Dataset
from learner.device import pick_device, use_bf16, use_tf32
from learner.diverged import diverged
from learner.errors import DivergedError, StoppedError
from learner.images import jitter
from learner.loader.batch import Batch, Samples, Window
from learner.loader.loader import Loader
from learner.loader.sampler import Part, Sampler
from learner.memory import memory_kept
from learner.model import fresh
from learner.optimiser import clip_gradients, make_optimiser, set_rate
from learner.recompute import recompute
from learner.run_state import restore, tensors_of
from learner.watch import Alarm, LossWatch, WeightWatch
from policies.act import ACT
from policies.config import NormStats
from policies.loss import act_loss
from policies.normalise import Normaliser
from policies.winograd import lay_out

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss averaged since the last call)."""

Stop = Callable[[], bool]
"""Asked after every step: whether to leave off there."""


@dataclass(frozen=True)
class TrainResult:
    """``model`` holds the averaged weights in eval mode; ``losses`` are (step, mean loss) pairs.

    ``waiting`` is the share of the time that training waited for data.
    """

    model: ACT
    normaliser: Normaliser
    losses: tuple[tuple[int, float], ...]
    seconds: float
    samples_per_s: float
    waiting: float = 0.0


@dataclass(frozen=True)
class Teacher:
    """Chunks of the champion, float32 (N, H, A) normalised, for the first N steps of the data set.

    ``weight`` multiplies the mean absolute difference to them on base samples.
    """

    actions: torch.Tensor
    weight: float


def train(
    dataset: Dataset,
    config: TrainConfig,
    *,
    parts: Sequence[Part] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> TrainResult:
    """Train on every step of ``dataset``, from what `learner.model.fresh` makes.

    ``parts`` say how batches are mixed; by default every step is as likely as another. With ``folder`` a
    checkpoint is kept there and continued from. Raises DataError for data that do not fit the network,
    DivergedError, which names the batch, on NaN or infinity in loss, gradients or weights and on a spike of
    the loss, CheckpointError for a foreign checkpoint, StoppedError when ``stop`` said so (a checkpoint is
    then in ``folder``).
    """
    model, stats = fresh(dataset, config.model, config.seed)
    mixed = parts or [Part(0, len(dataset), min(config.batch, len(dataset)))]
    return Trainer(model, stats, dataset, mixed, config).run(folder, progress, stop)


class Trainer:
    """The loop shared by training and fine-tuning. ``model`` is trained in place.

    ``parts`` say how batches are mixed, the base part first.
    """

    def __init__(
        self,
        model: ACT,
        stats: NormStats,
        dataset: Samples,
        parts: Sequence[Part],
        config: TrainConfig,
        teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.device = pick_device(config.device)
        bf16 = use_bf16(config.precision, self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu" and not bf16:
            lay_out(self.model)
        self.normaliser = Normaliser(stats, model.config).to(self.device)
        self.average = WeightAverage(self.model, config.ema)
        self.dataset = dataset
        self.sampler = Sampler(parts, config.seed)
        self.loader = Loader(
            dataset, self.sampler, Window(model.config.chunk), threads=config.data.decode_threads
        )
        self.teacher = teacher
        self.optimizer = make_optimiser(self.model, config)
        self.watch = LossWatch(config.watch, config.warmup * config.accumulate)
        self.watched = WeightWatch(self.model)
        self._folder: Path | None = None
        if config.recompute:
            recompute(self.model)
        self._network = compiled(self.model, config.compile, self.device, config.steps)
        self._generator = torch.Generator()
        described = {
            "config": config.model_dump(mode="json", exclude={"checkpoint_every", "log_every", "watch"}),
            "network": model.config.model_dump(mode="json"),
            "stats": stats.model_dump(mode="json"),
            "steps": len(dataset),
            "parts": [(p.first, p.size, p.count) for p in parts],
        }
        self.fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def run(
        self, folder: Path | None = None, progress: Progress | None = None, stop: Stop | None = None
    ) -> TrainResult:
        """All steps that are left, then the BatchNorm statistics of the averaged weights."""
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self._folder = folder
        config, first = self.config, self._resume(folder)
        losses: list[tuple[int, float]] = []
        started, total, since = time.monotonic(), 0.0, 0
        with self._running(folder) as writer:
            for step in range(first, config.steps):
                total += self.step(step)
                since += 1
                done = step + 1
                if done % config.log_every == 0 or done == config.steps:
                    losses.append((done, total / since))
                    if progress is not None:
                        progress(done, config.steps, total / since)
                    total, since = 0.0, 0
                leave = stop is not None and done < config.steps and stop()
                if leave or done % config.checkpoint_every == 0 or done == config.steps:
                    self._save(writer, done)
                if leave:
                    self._leave(writer, done)
            seconds = time.monotonic() - started
            waiting = self.loader.waited_s / seconds if seconds > 0 else 0.0
            self._estimate_batchnorm()
        rate = (
            (config.steps - first) * config.accumulate * self.sampler.batch / seconds if seconds > 0 else 0.0
        )
        log.info("training.done steps=%d samples_per_s=%.0f waiting=%.4f", config.steps, rate, waiting)
        return TrainResult(self.average.model, self.normaliser, tuple(losses), seconds, rate, waiting)

    @contextmanager
    def _running(self, folder: Path | None) -> Iterator[CheckpointWriter | None]:
        """What is held for a run: memory, loader, random numbers, TF32 on a GPU, a writer for ``folder``."""
        devices = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as held:
            held.enter_context(memory_kept(self.model))
            held.enter_context(self.loader)
            held.enter_context(torch.random.fork_rng(devices=devices))
            held.enter_context(use_tf32(self.config.precision, self.device))
            if folder is None:
                yield None
            else:
                yield held.enter_context(CheckpointWriter(folder, self.fingerprint))

    def step(self, step: int) -> float:
        """One optimiser step, number ``step`` from 0. Returns the loss. Raises DivergedError."""
        config = self.config
        torch.manual_seed(_mix(config.seed, step))
        self._generator.manual_seed(_mix(config.seed + 1, step))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        first, total = step * config.accumulate, 0.0
        numbers = range(first, first + config.accumulate)
        for number in numbers:
            loss, errors = self._loss(self.loader.batch(number), self.sampler.indices(number))
            value = float(loss.detach())
            alarm = self.watch.judge(value)
            if alarm is not None:
                raise self._diverged(alarm, step, [number], errors)
            (loss / config.accumulate if config.accumulate > 1 else loss).backward()
            total += value
        norm = clip_gradients(self.model, config.clip)
        if not math.isfinite(norm):
            raise self._diverged(Alarm(f"gradient norm {norm:.3g}"), step, numbers, None)
        set_rate(self.optimizer, config, step)
        self.optimizer.step()
        broken = self.watched.not_finite()
        if broken is not None:  # here, while it is known which batch made it so
            raise self._diverged(
                Alarm(f"weight {broken} is not finite after the update"), step, numbers, None
            )
        self.average.update(step)
        return total / config.accumulate

    def _diverged(
        self, alarm: Alarm, step: int, numbers: Sequence[int], errors: torch.Tensor | None
    ) -> DivergedError:
        indices = torch.cat([self.sampler.indices(number) for number in numbers])
        samples = self.dataset.where(indices.numpy())
        values = None if errors is None else errors.tolist()
        return diverged(alarm, step, samples, values, self.watch.recent, self._folder)

    def _loss(self, batch: Batch, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch, and the mean absolute error (B,) of each of its samples."""
        state = self.normaliser.state(batch.state.to(self.device))
        actions = self.normaliser.actions(batch.actions.to(self.device))
        is_pad = batch.is_pad.to(self.device)
        with self.autocast:
            output = self._network(state, self._images(batch, augment=True), actions, is_pad)
        loss = act_loss(output, actions, is_pad, self.model.config.kl_weight).total
        wrong = (output.actions.detach().float() - actions).abs() * ~is_pad[..., None]
        if self.teacher is None or self.teacher.weight == 0.0:
            return loss, wrong.mean((1, 2))
        base = batch.base.to(self.device)
        wanted = self.teacher.actions[indices[batch.base]].to(self.device)
        apart = (output.actions[base].float() - wanted).abs()
        return loss + self.teacher.weight * (apart * ~is_pad[base][..., None]).mean(), wrong.mean((1, 2))

    def _images(self, batch: Batch, augment: bool) -> list[torch.Tensor]:
        out = []
        for index, camera in enumerate(self.model.config.cameras):
            pixels = batch.images[camera.name].to(self.device)
            if augment:
                pixels = jitter(pixels, self.config.jitter, self._generator)
            out.append(self.normaliser.image(index, pixels))
        return out

    @torch.no_grad()
    def _estimate_batchnorm(self) -> None:
        """Running statistics of the averaged weights, as the plain mean over unaugmented batches.

        The averaged weights were never run while training: statistics that belong to them, rather
        than an average of the live weights' statistics, are what inference will use.
        """
        model = self.average.model
        norms = batchnorms(model)
        if not norms or not self.config.batchnorm_batches:
            return
        momenta = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's spelling of a cumulative mean
            norm.train()
        for number in range(self.config.batchnorm_batches):
            batch = self.loader.batch(self.config.steps * self.config.accumulate + number)
            with self.autocast:
                model(self.normaliser.state(batch.state.to(self.device)), self._images(batch, augment=False))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _leave(self, writer: CheckpointWriter | None, done: int) -> None:
        if writer is not None:
            writer.wait()
        kept = "its checkpoint is kept" if writer is not None else "nothing is kept"
        raise StoppedError(f"training was stopped after step {done} of {self.config.steps}", kept)

    def _save(self, writer: CheckpointWriter | None, done: int) -> None:
        if writer is None:
            return
        broken = self.watched.not_finite()
        if broken is not None:  # something else than a step did that
            raise DivergedError(
                f"weight {broken} is not finite after step {done}",
                "whoever is told of the progress must not change weights; the last checkpoint is intact",
            )
        writer.save(tensors_of(self.model, self.average, self.optimizer, self.watch), done)

    def _resume(self, folder: Path | None) -> int:
        found = load_checkpoint(folder, self.fingerprint) if folder is not None else None
        if found is None:
            return 0
        tensors, step = found
        restore(tensors, self.model, self.average, self.optimizer, self.watch)
        log.info("training.resumed step=%d", step)
        return step


def _mix(seed: int, step: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)
