"""Training data: steps of many episodes end to end, chunks and histories cut on demand.

An episode is first cut into *segments*: stretches of consecutive steps that may be cloned. Steps
a person did not command, pauses and gaps end a segment, and an action chunk never reaches over
the end of its segment: the rest of it is padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from learner.config import DataConfig
from learner.errors import DataError
from learner.loader.batch import F32, I64, U8, Batch, Mask, Rows, Window, collect
from learner.loader.pictures import HeldPictures, Pictures
from learner.loader.table import Table, TablePart, lay_out

# The recorded numbers of runtime.nouns.Source; the learner reads them from the store only.
SOURCE_TELEOP = 1
SOURCE_POLICY = 2
SOURCE_INTERVENTION = 3


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


class Dataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """N samples of a table with their pictures; also a map-style data set of torch.

    ``state`` (N, S), ``action`` (N, A) float32; ``end`` int64 (N,) is one past the last step of the
    sample's segment; ``episodes`` names the episode of each segment, ``starts`` its first step.
    ``window`` is what ``dataset[i]`` holds.
    """

    def __init__(self, table: Table, pictures: Pictures, window: Window | None = None) -> None:
        if len(table.row) == 0:
            raise DataError("no step of the selected episodes may be cloned", "select other episodes")
        for name, values in {"state": table.state, "action": table.action}.items():
            if not np.isfinite(values).all():
                raise DataError(
                    f"{name} of the selected episodes holds NaN or infinite values", "leave them out"
                )
        self.table = table
        self.pictures = pictures
        self.window = window or Window(1)
        self.state = torch.from_numpy(table.state[table.row])
        self.action = torch.from_numpy(np.ascontiguousarray(table.action, np.float32))
        self.lengths = table.lengths
        self.episodes = table.episodes
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self.end: I64 = np.repeat(np.cumsum(self.lengths), self.lengths).astype(np.int64)

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """(height, width) of each camera's pictures."""
        return self.pictures.sizes

    @property
    def state_dim(self) -> int:
        """Numbers in a state."""
        return self.table.state.shape[1]

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.table.action.shape[1]

    @property
    def identity(self) -> str:
        """SHA-256 over the episodes, how they were cut, their states, actions and picture sizes.

        The pictures themselves are not read for it: an episode's id never names others.
        """
        described = [self.episodes, self.starts.tolist(), sorted(self.sizes.items())]
        sha = hashlib.sha256(json.dumps(described).encode())
        for values in (self.table.row, self.table.state, self.table.action):
            sha.update(np.ascontiguousarray(values).data)
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.table.row)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample by LeRobot's names: observation.state, observation.images.NAME uint8 (H, W, 3), action,
        action_is_pad, observation.is_pad; with a history as in `Batch`."""
        batch = collect(self, np.asarray([index]), self.window)
        images = {f"observation.images.{name}": value[0] for name, value in batch.images.items()}
        return {
            "observation.state": batch.state[0],
            **images,
            "observation.is_pad": batch.past_is_pad[0],
            "action": batch.actions[0],
            "action_is_pad": batch.is_pad[0],
        }

    @classmethod
    def build(cls, episodes: Iterable[EpisodeArrays], config: DataConfig, trim: bool = False) -> Dataset:
        """Lay ``episodes``, whose pictures are decoded, end to end. Raises DataError when shapes disagree."""
        items = list(episodes)
        if not items:
            raise DataError("no episode selected", "check the selection")
        for episode in items:
            _check_like(items[0], episode)
        parts = [
            TablePart(
                e.episode,
                e.state,
                e.action,
                cut_segments(e.state, e.action, e.clone, e.breaks, e.fps, config, trim),
                {name: np.arange(len(e.state)) for name in e.images},
                np.asarray(e.breaks, np.int64),
                {name: len(e.state) for name in e.images},
            )
            for e in items
        ]
        held = {name: np.concatenate([e.images[name] for e in items]) for name in items[0].images}
        return cls(lay_out(parts), HeldPictures(held))

    def picture(self, camera: str, indices: Sequence[int] | I64 | None = None) -> torch.Tensor:
        """The pictures of ``camera`` that samples ``indices`` see (all of them): uint8 (n, H, W, 3)."""
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        out = np.empty((len(chosen), *self.sizes[camera], 3), np.uint8)
        for to, number in enumerate(self.table.picture[camera][self.table.row[chosen]].tolist()):
            self.pictures.read_into(camera, number, out[to])
        return torch.from_numpy(out)

    def batch(self, indices: torch.Tensor, chunk: int, base: torch.Tensor | None = None) -> Batch:
        """Samples at ``indices`` int64 (B,) with the next ``chunk`` actions each."""
        return collect(self, indices.numpy(), Window(chunk), base)

    def where(self, indices: I64) -> list[tuple[str, int]]:
        """As `Samples.where`."""
        segments = np.searchsorted(self.starts, indices, side="right") - 1
        return [
            (self.episodes[s], int(self.table.row[i]) - self.table.begins[s])
            for i, s in zip(indices.tolist(), segments.tolist(), strict=True)
        ]

    def fill(self, rows: Rows, at: I64, indices: I64) -> None:
        """As `Samples.fill`. Raises DataError when a picture cannot be read."""
        table = self.table
        ahead = indices[:, None] + np.arange(rows.actions.shape[1])
        last = self.end[indices][:, None]
        rows.actions[at] = table.action[np.minimum(ahead, last - 1)]
        rows.is_pad[at] = ahead >= last
        now = table.row[indices][:, None]
        past = now + np.arange(1 - rows.state.shape[1], 1)
        seen = np.maximum(past, table.first[now])
        rows.state[at] = table.state[seen]
        rows.past_is_pad[at] = past < seen
        for camera, out in rows.images.items():
            numbers = table.picture[camera][seen].tolist()
            for to, wanted in zip(at.tolist(), numbers, strict=True):
                for step, number in enumerate(wanted):
                    self.pictures.read_into(camera, number, out[to, step])


def _check_like(first: EpisodeArrays, other: EpisodeArrays) -> None:
    def shape(e: EpisodeArrays) -> tuple[object, ...]:
        return e.state.shape[1:], e.action.shape[1:], {k: v.shape[1:] for k, v in e.images.items()}

    if shape(first) != shape(other):
        raise DataError(
            f"episode {other.episode} has shapes {shape(other)}, {first.episode} has {shape(first)}",
            "select episodes of one robot, or set image_size",
        )
