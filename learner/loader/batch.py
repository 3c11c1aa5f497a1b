"""What a batch is, and how its rows are filled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """B samples in raw units: state (B, S), images name → uint8 (B, H, W, 3), actions (B, H, A).

    ``is_pad`` bool (B, H) marks actions behind the end of a segment, ``base`` bool (B,) samples
    of the base part. With a history of T > 1 observations, state is (B, T, S), images (B, T, H, W, 3), the
    newest last, and ``past_is_pad`` bool (B, T) marks observations from before there was any: those
    repeat the first.
    """

    state: torch.Tensor
    images: dict[str, torch.Tensor]
    actions: torch.Tensor
    is_pad: torch.Tensor
    base: torch.Tensor
    past_is_pad: torch.Tensor


@dataclass(frozen=True)
class Window:
    """What a sample looks at: ``chunk`` actions ahead, ``history`` observations back (1: only its own)."""

    chunk: int
    history: int = 1


@dataclass(frozen=True)
class Rows:
    """A batch being filled: as `Batch`, as numpy arrays, always with the axis T."""

    state: F32
    images: dict[str, U8]
    actions: F32
    is_pad: Mask
    past_is_pad: Mask

    @classmethod
    def empty(cls, count: int, like: Samples, window: Window) -> Rows:
        """Room for ``count`` samples."""
        past = (count, window.history)
        return cls(
            np.empty((*past, like.state_dim), np.float32),
            {name: np.empty((*past, *size, 3), np.uint8) for name, size in like.sizes.items()},
            np.empty((count, window.chunk, like.action_dim), np.float32),
            np.empty((count, window.chunk), bool),
            np.empty(past, bool),
        )

    def references(self) -> int:
        """How often the arrays are referred to: as many as when they were made means that no tensor does."""
        arrays = (self.state, self.actions, self.is_pad, self.past_is_pad, *self.images.values())
        return sum(sys.getrefcount(array) for array in arrays)

    def batch(self, base: torch.Tensor | None = None) -> Batch:
        """The same as tensors, without copying; without the axis T where it is 1."""
        single = self.state.shape[1] == 1
        images = {k: torch.from_numpy(v[:, 0] if single else v) for k, v in self.images.items()}
        return Batch(
            state=torch.from_numpy(self.state[:, 0] if single else self.state),
            images=images,
            actions=torch.from_numpy(self.actions),
            is_pad=torch.from_numpy(self.is_pad),
            base=torch.ones(len(self.state), dtype=torch.bool) if base is None else base,
            past_is_pad=torch.from_numpy(self.past_is_pad),
        )


class Samples(Protocol):
    """What training draws from. ``sizes`` is (height, width) of each camera's pictures."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]: ...

    @property
    def state_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    @property
    def identity(self) -> str:
        """The same for the same samples in the same order, another for any others."""

    def __len__(self) -> int: ...

    def fill(self, rows: Rows, at: I64, indices: I64) -> None:
        """Write sample ``indices[i]`` to row ``at[i]``; from several threads at once, rows apart."""

    def where(self, indices: I64) -> list[tuple[str, int]]:
        """(episode, observation within it) of each sample."""


def collect(samples: Samples, indices: I64, window: Window, base: torch.Tensor | None = None) -> Batch:
    """The samples ``indices`` int64 (B,) as one batch, in this thread."""
    rows = Rows.empty(len(indices), samples, window)
    samples.fill(rows, np.arange(len(indices)), indices)
    return rows.batch(base)
