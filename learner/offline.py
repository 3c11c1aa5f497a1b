"""Offline evaluation: how far predicted chunks are from held-out demonstrations, beside two baselines.

Not a measure of success (a policy can be close and fail), but what can be said without a robot.
The baselines are honest ones: hold the last action taken, and the mean action of the training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learner.data import Dataset
from policies.session import PolicySession

F64 = npt.NDArray[np.float64]

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute error in raw units: over everything, per action column, and by steps ahead."""

    mean: float
    per_dimension: tuple[float, ...]
    per_step: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OfflineReport:
    """``policy`` against holding the ``last_action`` and against the training set's ``mean_action``.

    ``scaled`` are the same means in standard deviations of the action, so that columns of different
    units can be added up. ``samples`` predictions, ``values`` compared numbers a column.
    """

    policy: Errors
    last_action: Errors
    mean_action: Errors
    scaled: dict[str, float]
    samples: int
    values: int
    episodes: int
    action_names: tuple[str, ...]

    @property
    def beats_baselines(self) -> bool:
        """Whether the policy's scaled error is below both baselines'."""
        return self.scaled["policy"] < min(self.scaled["last_action"], self.scaled["mean_action"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "beats_baselines": self.beats_baselines}


class _Sum:
    """Absolute errors of (B, H, A) predictions, added up where the target exists."""

    def __init__(self, chunk: int, dims: int) -> None:
        self.total = np.zeros((chunk, dims))
        self.count = np.zeros(chunk)

    def add(
        self, predicted: npt.NDArray[Any], target: npt.NDArray[Any], valid: npt.NDArray[np.bool_]
    ) -> None:
        self.total += (np.abs(predicted - target) * valid[..., None]).sum(0)
        self.count += valid.sum(0)

    def errors(self) -> Errors:
        column = self.total.sum(0) / max(1.0, self.count.sum())
        step = self.total.mean(1) / np.maximum(1.0, self.count)
        return Errors(float(column.mean()), tuple(column.tolist()), tuple(step.tolist()))


def evaluate_offline(
    session: PolicySession,
    held_out: Dataset,
    *,
    stride: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> OfflineReport:
    """Predict every ``stride``-th step of ``held_out`` and compare whole chunks, padding left out.

    ``last_action`` repeats the action of the step before (the first step of a segment: its own
    state is all there is, so it repeats the first action: a small gift to the baseline).
    """
    manifest = session.manifest
    chunk, dims = session.chunk, held_out.action.shape[1]
    mean = np.asarray(manifest.normalisation.action.mean)
    std = np.maximum(np.asarray(manifest.normalisation.action.std), 1e-9)
    sums = {name: _Sum(chunk, dims) for name in ("policy", "last_action", "mean_action")}
    starts = torch.zeros(len(held_out), dtype=torch.bool)
    starts[torch.from_numpy(held_out.starts)] = True
    rows = torch.arange(0, len(held_out), stride)
    for at in range(0, len(rows), _BATCH):
        indices = rows[at : at + _BATCH]
        batch = held_out.batch(indices, chunk)
        target, valid = batch.actions.numpy(), ~batch.is_pad.numpy()
        images = {camera.name: batch.images[camera.name].numpy() for camera in manifest.cameras}
        before = held_out.action[torch.where(starts[indices], indices, indices - 1)].numpy()
        sums["policy"].add(session.infer(batch.state.numpy(), images).actions, target, valid)
        sums["last_action"].add(before[:, None, :], target, valid)
        sums["mean_action"].add(mean[None, None, :], target, valid)
        if progress is not None:
            progress(min(at + _BATCH, len(rows)), len(rows))
    errors = {name: total.errors() for name, total in sums.items()}
    return OfflineReport(
        **errors,
        scaled={k: float((np.asarray(e.per_dimension) / std).mean()) for k, e in errors.items()},
        samples=len(rows),
        values=int(sums["policy"].count.sum()),
        episodes=len(set(held_out.episodes)),
        action_names=manifest.action_names,
    )
