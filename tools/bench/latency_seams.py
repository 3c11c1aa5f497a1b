"""What `ratchet bench latency` measures of a motion, and the client it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.chunks import ARM_JOINTS
from runtime.nouns import ActionChunk, Vector

#: Ticks that a third difference looks back on.
_BACK = 3


@dataclass(frozen=True, slots=True)
class Jerk:
    """Sums of squares, rad²/s⁶, and how many ticks they are of: where chunks change, and everywhere else."""

    seam: float
    seam_ticks: int
    interior: float
    interior_ticks: int


def jerk(goals: Sequence[Vector], seams: Sequence[int], blend: int, rate_hz: float) -> Jerk:
    """The jerk of the goals that the guard let through, at the seams and between them.

    A tick's jerk is the Euclidean norm over the arm's joints (gripper left out: it opens and closes in
    steps) of the third difference q[t] − 3q[t−1] + 3q[t−2] − q[t−3] times the rate cubed. To a seam belong
    the ticks from the first one on which another chunk had its say to the last one whose third difference
    touches the blend: ``blend`` + 3 of them. The first chunk of an episode has no seam; until three ticks
    after it has begun nothing counts.
    """
    if not seams or len(goals) <= _BACK:
        return Jerk(0.0, 0, 0.0, 0)
    q = np.array(goals)[:, :ARM_JOINTS]
    squares = np.zeros(len(q))
    third = (q[3:] - 3 * q[2:-1] + 3 * q[1:-2] - q[:-3]) * rate_hz**3
    squares[3:] = (third**2).sum(axis=1)
    at_seam = np.zeros(len(q), bool)
    for seam in seams[1:]:
        at_seam[seam : seam + blend + _BACK] = True
    counts = np.arange(len(q)) >= seams[0] + _BACK
    at, between = squares[counts & at_seam], squares[counts & ~at_seam]
    return Jerk(float(at.sum()), len(at), float(between.sum()), len(between))


class NaivePlayer:
    """A `runtime.chunks.Player` as one writes it first: play ``execute`` rows, ask, stand still, play again.

    A chunk is played from its first row whenever it comes, and nothing is blended.
    """

    overlap_error: float | None = None

    def __init__(self, execute: int) -> None:
        self._execute = execute
        self.reset()

    def reset(self) -> None:
        """See `runtime.chunks.ChunkPlayer`, as for the other members."""
        self.chunk: ActionChunk | None = None
        self._begun = 0

    def expect(self, ticks: int) -> None:
        """It does not look ahead."""

    def wants(self, tick: int) -> bool:
        return self.chunk is None or tick - self._begun >= self._execute

    def offer(self, chunk: ActionChunk, tick: int) -> bool:
        if self.chunk is not None and chunk.start_tick <= self.chunk.start_tick:
            return False
        self.chunk, self._begun = chunk, tick
        return True

    def action(self, tick: int) -> Vector | None:
        row = tick - self._begun
        if self.chunk is None or not 0 <= row < min(self._execute, len(self.chunk.actions)):
            return None
        return self.chunk.actions[row].astype(np.float64)
