"""Training data in RAM: steps of many episodes end to end, images as uint8, chunks cut on demand.

An episode is first cut into *segments*: stretches of consecutive steps that may be cloned. Steps
a person did not command, pauses and gaps end a segment, and an action chunk never reaches over
the end of its segment: the rest of it is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from learner.config import DataConfig
from learner.errors import DataError

# The recorded numbers of runtime.nouns.Source; the learner reads them from the store only.
SOURCE_TELEOP = 1
SOURCE_POLICY = 2
SOURCE_INTERVENTION = 3

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EpisodeArrays:
    """One episode, n steps: state (n, S) and action (n, A) float32, images name → uint8 (n, H, W, 3).

    ``source`` uint8 (n,) says who commanded each step, ``clone`` bool (n,) which steps may be
    imitated. ``breaks`` are steps that do not directly follow the step before them.
    """

    episode: str
    state: F32
    action: F32
    images: Mapping[str, U8]
    source: U8
    clone: Mask
    fps: float = 30.0
    breaks: tuple[int, ...] = field(default=())


def cut_segments(
    state: F32, action: F32, clone: Mask, breaks: Sequence[int], fps: float, config: DataConfig, trim: bool
) -> list[I64]:
    """Step indices of each segment of an episode, in order.

    With ``trim``, steps inside a pause (no state or action column moves by ``pause_rad`` or more
    for ``pause_s``) are left out; the segment goes on behind the pause.
    """
    keep = clone.copy()
    if trim and len(state) > 1:
        delta = np.maximum(np.abs(np.diff(state, axis=0)).max(1), np.abs(np.diff(action, axis=0)).max(1))
        still = np.concatenate([[False], delta < config.pause_rad])
        for start, end in _runs(still):
            if end - start >= config.pause_s * fps:
                keep[start:end] = False
    cuts = set(breaks) | {int(i) for i in np.flatnonzero(np.diff(clone.astype(np.int8))) + 1}
    edges = sorted({0, len(clone)} | {c for c in cuts if 0 < c < len(clone)})
    segments = [np.flatnonzero(keep[a:b]) + a for a, b in pairwise(edges)]
    return [s.astype(np.int64) for s in segments if len(s)]


def _runs(mask: Mask) -> list[tuple[int, int]]:
    """[start, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@dataclass(frozen=True)
class Batch:
    """B samples in raw units: state (B, S), images name → uint8 (B, H, W, 3), actions (B, H, A).

    ``is_pad`` bool (B, H) marks actions behind the end of a segment, ``base`` bool (B,) samples
    of the base part.
    """

    state: torch.Tensor
    images: dict[str, torch.Tensor]
    actions: torch.Tensor
    is_pad: torch.Tensor
    base: torch.Tensor


class Samples(Protocol):
    """What training draws from."""

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, chunk: int, base: torch.Tensor | None = None) -> Batch: ...


class Dataset:
    """N steps end to end.

    ``state`` (N, S), ``action`` (N, A) float32, ``images`` name → uint8 (N, H, W, 3); ``end``
    int64 (N,) is one past the last step of the step's segment; ``episodes`` names the episode of
    each segment, ``starts`` its first step.
    """

    def __init__(
        self,
        state: F32,
        action: F32,
        images: Mapping[str, U8],
        lengths: Sequence[int],
        episodes: Sequence[str],
    ) -> None:
        if len(state) == 0:
            raise DataError("no step of the selected episodes may be cloned", "select other episodes")
        for name, values in {"state": state, "action": action}.items():
            if not np.isfinite(values).all():
                raise DataError(
                    f"{name} of the selected episodes holds NaN or infinite values", "leave them out"
                )
        self.state = torch.from_numpy(np.ascontiguousarray(state, np.float32))
        self.action = torch.from_numpy(np.ascontiguousarray(action, np.float32))
        self.images = {k: torch.from_numpy(v) for k, v in images.items()}
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self.end = torch.from_numpy(np.repeat(np.cumsum(lengths), lengths).astype(np.int64))
        self.lengths = tuple(int(n) for n in lengths)
        self.episodes = tuple(episodes)

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def build(cls, episodes: Iterable[EpisodeArrays], config: DataConfig, trim: bool = False) -> Dataset:
        """Lay the cloneable steps of ``episodes`` end to end. Raises DataError when shapes disagree."""
        items = list(episodes)
        if not items:
            raise DataError("no episode selected", "check the selection")
        first = items[0]
        cut = [cut_segments(e.state, e.action, e.clone, e.breaks, e.fps, config, trim) for e in items]
        total = sum(len(s) for segments in cut for s in segments)
        shapes = {name: image.shape[1:] for name, image in first.images.items()}
        state = np.empty((total, *first.state.shape[1:]), np.float32)
        action = np.empty((total, *first.action.shape[1:]), np.float32)
        images = allocate_images(total, shapes, config)
        at, lengths, names = 0, [], []
        for episode, segments in zip(items, cut, strict=True):
            _check_like(first, episode)
            for steps in segments:
                to = slice(at, at + len(steps))
                state[to], action[to] = episode.state[steps], episode.action[steps]
                for name, frames in episode.images.items():
                    images[name][to] = frames[steps]
                at += len(steps)
                lengths.append(len(steps))
                names.append(episode.episode)
        return cls(state, action, images, lengths, names)

    def batch(self, indices: torch.Tensor, chunk: int, base: torch.Tensor | None = None) -> Batch:
        """Samples at ``indices`` int64 (B,) with the next ``chunk`` actions each."""
        ahead = indices[:, None] + torch.arange(chunk)
        last = self.end[indices][:, None]
        return Batch(
            state=self.state[indices],
            images={k: v.index_select(0, indices) for k, v in self.images.items()},
            actions=self.action[torch.minimum(ahead, last - 1)],
            is_pad=ahead >= last,
            base=torch.ones(len(indices), dtype=torch.bool) if base is None else base,
        )


def _check_like(first: EpisodeArrays, other: EpisodeArrays) -> None:
    def shape(e: EpisodeArrays) -> tuple[object, ...]:
        return e.state.shape[1:], e.action.shape[1:], {k: v.shape[1:] for k, v in e.images.items()}

    if shape(first) != shape(other):
        raise DataError(
            f"episode {other.episode} has shapes {shape(other)}, {first.episode} has {shape(first)}",
            "select episodes of one robot, or set image_size",
        )


def allocate_images(n: int, shapes: Mapping[str, tuple[int, ...]], config: DataConfig) -> dict[str, U8]:
    """uint8 (n, H, W, 3) per camera; in an unnamed file under ``scratch`` above ``ram_gib``."""
    total = sum(n * int(np.prod(shape)) for shape in shapes.values())
    if total <= config.ram_gib * 2**30 or n == 0:
        return {k: np.empty((n, *shape), np.uint8) for k, shape in shapes.items()}
    scratch = config.scratch or Path.cwd()
    images: dict[str, U8] = {}
    for name, shape in shapes.items():
        with TemporaryFile(dir=scratch) as file:  # unlinked already; the mapping keeps it alive
            images[name] = np.memmap(file, np.uint8, "w+", shape=(n, *shape))
    return images


@dataclass(frozen=True, slots=True)
class Part:
    """Steps [first, first + size) of a dataset, of which ``count`` go into every batch."""

    first: int
    size: int
    count: int


class Sampler:
    """Which steps make up batch number ``step``: a pure function of (seed, step).

    Each part is gone through in a fresh permutation per epoch, so that resuming needs no state.
    """

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        if not parts or any(p.size < 1 or p.count < 1 for p in parts):
            raise DataError("a part of the training mix is empty", "select more episodes")
        self._parts = tuple(parts)
        self._seed = seed
        self._orders: dict[tuple[int, int], I64] = {}
        self.batch = sum(p.count for p in parts)

    def indices(self, step: int) -> torch.Tensor:
        """int64 (B,) steps of batch ``step``, the first part first."""
        rows = [self._draw(number, part, step) for number, part in enumerate(self._parts)]
        return torch.from_numpy(np.concatenate(rows))

    def base(self) -> torch.Tensor:
        """bool (B,): True for the samples of the first part."""
        return torch.arange(self.batch) < self._parts[0].count

    def _draw(self, number: int, part: Part, step: int) -> I64:
        at = np.arange(step * part.count, (step + 1) * part.count)
        epochs, rows = at // part.size, at % part.size
        chosen = [self._order(number, part, int(e))[r] for e, r in zip(epochs, rows, strict=True)]
        return part.first + np.asarray(chosen, np.int64)

    def _order(self, number: int, part: Part, epoch: int) -> I64:
        key = (number, epoch)
        if key not in self._orders:
            for old in [k for k in self._orders if k[0] == number and k[1] < epoch - 1]:
                del self._orders[old]
            self._orders[key] = np.random.default_rng([self._seed, number, epoch]).permutation(part.size)
        return self._orders[key]
