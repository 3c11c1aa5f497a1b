"""Incremental fine-tuning: corrections mixed with replay, held close to the champion elsewhere.

The control arm is the same run on base steps only, so that what the corrections did can be told
from what more training did.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from learner.config import FinetuneConfig
from learner.data import Dataset
from learner.device import pick_device, use_bf16
from learner.errors import DataError
from learner.loader.batch import I64, Batch, Rows, Samples, Window, collect
from learner.loader.sampler import Part
from learner.train import Progress, Teacher, Trainer, TrainResult
from policies.act import ACT
from policies.config import NormStats
from policies.normalise import Normaliser

log = logging.getLogger(__name__)

_TEACHER_BATCH = 64


def finetune(
    champion: ACT,
    stats: NormStats,
    base: Dataset,
    corrections: Dataset | None,
    config: FinetuneConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a copy of ``champion`` on ``base`` and ``corrections``; ``stats`` is its normalisation, kept.

    Raises DataError for too few corrections or arrays that do not fit the champion; else as
    `learner.train.train`.
    """
    model = ACT(champion.config)
    model.load_state_dict(champion.state_dict())
    _check_fits(model, base, "the base episodes")
    parts = [Part(0, len(base), min(config.train.batch, len(base)))]
    data: Samples = base
    if config.corrections:
        if corrections is None or len(set(corrections.episodes)) < config.min_corrections:
            count = 0 if corrections is None else len(set(corrections.episodes))
            raise DataError(
                f"{count} corrected episodes are too few to fine-tune on ({config.min_corrections} needed)",
                "record more take-overs",
            )
        _check_fits(model, corrections, "the corrections")
        data = Joined(base, corrections)
        parts = mix(len(base), len(corrections), config)
    teacher = None
    if config.penalty > 0.0:
        teacher = Teacher(champion_actions(champion, stats, base, config), config.penalty)
    log.info("finetune.start base=%d corrections=%d", len(base), len(data) - len(base))
    return Trainer(model, stats, data, parts, config.train, teacher).run(folder, progress)


def mix(base: int, corrections: int, config: FinetuneConfig) -> list[Part]:
    """How a batch is made up: ``base_share`` of it base steps, more where the cap on oversampling says so."""
    batch = config.train.batch
    natural = corrections / (base + corrections)
    share = min(1.0 - config.base_share, natural * config.max_oversample)
    count = min(max(1, round(batch * share)), batch - 1) if batch > 1 else 1
    return [Part(0, base, max(1, batch - count)), Part(base, corrections, count)]


class Joined:
    """Two data sets end to end without copying them: the steps of ``first`` keep their indices."""

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self._first = first
        self._second = second
        self.sizes = first.sizes
        self.state_dim, self.action_dim = first.state_dim, first.action_dim

    @property
    def identity(self) -> str:
        """As `learner.loader.batch.Samples.identity`."""
        return f"{self._first.identity} {self._second.identity}"

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def fill(self, rows: Rows, at: I64, indices: I64) -> None:
        """As `learner.loader.batch.Samples.fill`."""
        own = indices < len(self._first)
        self._first.fill(rows, at[own], indices[own])
        self._second.fill(rows, at[~own], indices[~own] - len(self._first))

    def where(self, indices: I64) -> list[tuple[str, int]]:
        """As `learner.loader.batch.Samples.where`."""
        first = len(self._first)
        return [
            (self._first if i < first else self._second).where(np.asarray([i if i < first else i - first]))[0]
            for i in indices.tolist()
        ]

    def batch(self, indices: torch.Tensor, chunk: int) -> Batch:
        """As `Dataset.batch`; ``base`` marks the samples of the first."""
        return collect(self, indices.numpy(), Window(chunk), indices < len(self._first))


@torch.no_grad()
def champion_actions(champion: ACT, stats: NormStats, base: Dataset, config: FinetuneConfig) -> torch.Tensor:
    """What the champion does on every base step: float32 (N, H, A), normalised, from unaugmented pictures.

    Computed once: cheaper than running the champion beside every step, and a steadier target.
    """
    device = pick_device(config.train.device)
    model = ACT(champion.config)
    model.load_state_dict(champion.state_dict())
    model.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    normaliser = Normaliser(stats, champion.config).to(device)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(config.train.precision, device))
    rows: list[torch.Tensor] = []
    for start in range(0, len(base), _TEACHER_BATCH):
        batch = base.batch(torch.arange(start, min(start + _TEACHER_BATCH, len(base))), champion.config.chunk)
        pixels = {k: v.to(device) for k, v in batch.images.items()}
        with cast:
            out = model(normaliser.state(batch.state.to(device)), normaliser.images(pixels))
        rows.append(out.actions.float().cpu())
    return torch.cat(rows)


def _check_fits(model: ACT, data: Dataset, what: str) -> None:
    config = model.config
    cameras = {c.name: (c.height, c.width) for c in config.cameras}
    have = dict(data.sizes)
    if data.state_dim != config.state_dim or data.action_dim != config.action_dim:
        raise DataError(
            f"{what} have {data.state_dim} states and {data.action_dim} actions, the champion "
            f"takes {config.state_dim} and {config.action_dim}",
            "select episodes of the champion's robot",
        )
    missing = {k: v for k, v in cameras.items() if have.get(k) != v}
    if missing:
        raise DataError(
            f"{what} have cameras {have}, the champion takes {cameras}", "set image_size to the champion's"
        )
