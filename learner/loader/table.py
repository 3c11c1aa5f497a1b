"""The numbers of a data set, without its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.loader.batch import F32, I64


@dataclass(frozen=True)
class Table:
    """The numbers of a data set: M observations of whole episodes, of which N steps are samples.

    ``state`` (M, S) float32; ``picture`` camera → int64 (M,) the number of its newest picture;
    ``first`` int64 (M,) the first observation of its uninterrupted stretch. ``row`` int64 (N,) is a
    sample's observation, ``action`` (N, A) float32 its action. ``lengths``, ``episodes`` and ``begins`` are
    samples, episode, and that episode's first observation, of each segment.
    """

    state: F32
    picture: dict[str, I64]
    first: I64
    row: I64
    action: F32
    lengths: tuple[int, ...]
    episodes: tuple[str, ...]
    begins: tuple[int, ...]


@dataclass(frozen=True)
class TablePart:
    """One episode on its way into a table: n observations, its segments of step indices.

    ``picture`` camera → int64 (n,) numbers within the episode, of ``pictures`` there are; an observation
    at ``breaks`` does not directly follow the one before.
    """

    episode: str
    state: F32
    action: F32
    segments: list[I64]
    picture: dict[str, I64]
    breaks: I64
    pictures: dict[str, int]


def lay_out(parts: Sequence[TablePart]) -> Table:
    """Episodes end to end."""
    first, row, begins, at = [], [], list[int](), 0
    picture: dict[str, list[I64]] = {camera: [] for camera in parts[0].picture}
    numbered = dict.fromkeys(picture, 0)
    for part in parts:
        starts = np.zeros(len(part.state), np.int64)
        starts[part.breaks] = part.breaks
        first.append(np.maximum.accumulate(starts) + at)
        row += [s + at for s in part.segments]
        begins += [at] * len(part.segments)
        at += len(part.state)
        for camera, numbers in part.picture.items():
            picture[camera].append(numbers + numbered[camera])
            numbered[camera] += part.pictures[camera]
    return Table(
        state=np.ascontiguousarray(np.concatenate([p.state for p in parts]), np.float32),
        picture={camera: np.concatenate(numbers) for camera, numbers in picture.items()},
        first=np.concatenate(first),
        row=np.concatenate(row) if row else np.empty(0, np.int64),
        action=np.concatenate([p.action[s] for p in parts for s in p.segments])
        if row
        else np.empty((0, parts[0].action.shape[1]), np.float32),
        lengths=tuple(len(s) for p in parts for s in p.segments),
        episodes=tuple(p.episode for p in parts for _ in p.segments),
        begins=tuple(begins),
    )
