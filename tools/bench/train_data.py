"""What `ratchet bench train` trains on: joints and pictures drawn at random, as a data set and as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learner.config import TrainConfig
from learner.data import Dataset, EpisodeArrays
from learner.loader.sampler import Part
from learner.model import act_config, build_model, norm_stats
from learner.train import Trainer
from policies.loss import act_loss
from policies.normalise import Normaliser

CAMERAS = ("front", "wrist")
JOINTS = 6


def samples(size: int, episodes: int, steps: int) -> Dataset:
    """``episodes`` of ``steps`` with two cameras of ``size``² px."""
    rng = np.random.default_rng(0)

    def joints() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return rng.normal(size=(steps, JOINTS)).astype(np.float32)

    def episode(number: int) -> EpisodeArrays:
        images = {c: rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8) for c in CAMERAS}
        source, clone = np.ones(steps, np.uint8), np.ones(steps, bool)
        return EpisodeArrays(f"random{number}", joints(), joints(), images, source, clone)

    return Dataset.build([episode(number) for number in range(episodes)], TrainConfig().data)


def trainer(data: Dataset, config: TrainConfig) -> Trainer:
    """A fresh run on ``data``."""
    model = build_model(act_config(data, config.model), config.seed)
    return Trainer(model, norm_stats(data), data, [Part(0, len(data), config.batch)], config)


def ready(
    data: Dataset, normaliser: Normaliser, count: int, chunk: int
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Samples from beginning to end, normalised: state, pictures (B, 3, H, W) by channel, actions, is_pad."""
    host = Normaliser(normaliser.stats, normaliser.config)
    batch = data.batch(torch.linspace(0, len(data) - 1, count).long(), chunk)
    images = [image.contiguous() for image in host.images(batch.images)]
    return host.state(batch.state), images, host.actions(batch.actions), batch.is_pad


class PlainStep:
    """The step of a network as torch takes it by default: channel by channel, fp32, AdamW not fused."""

    def __init__(self, data: Dataset, config: TrainConfig) -> None:
        self.model = build_model(act_config(data, config.model), config.seed).train()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        normaliser = Normaliser(norm_stats(data), self.model.config)
        self.batch = ready(data, normaliser, config.batch, self.model.config.chunk)
        self.clip = config.clip

    def __call__(self) -> float:
        """One step. Returns the loss."""
        state, images, actions, is_pad = self.batch
        output = self.model(state, images, actions, is_pad)
        loss = act_loss(output, actions, is_pad, self.model.config.kl_weight).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()
