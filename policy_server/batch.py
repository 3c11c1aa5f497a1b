"""A batch in the inference thread: gather the inputs, run the bundle, part the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.session import ChunkResult
from policy_server.backends import FAILURES
from policy_server.errors import InferenceError, ServerError
from policy_server.schedule import Job
from policy_server.slots import Serving
from policy_server.spec import IOSpec


@dataclass(frozen=True, slots=True)
class Answer:
    """``actions`` float32 (H, A), ``features`` float32 (D,), who made them, how fast and with how many.

    ``exec_ms`` is the time of the whole batch in the inference thread, ``queue_ms`` the wait before it,
    ``remaining_ms`` what was left of the deadline after it.
    """

    actions: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    version: str
    epoch: int
    exec_ms: float
    queue_ms: float
    batch: int
    remaining_ms: float


Outcome = Answer | ServerError
#: One observation in memory of its own: state (1, S), pictures (1, H, W, 3) by camera.
Observed = tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.uint8]]]


class BatchRunner:
    """Runs jobs together; owned by the inference thread."""

    def __init__(self) -> None:
        self._spec: IOSpec | None = None
        self._state = np.zeros((0, 0), np.float32)
        self._images: dict[str, npt.NDArray[np.uint8]] = {}

    def run(self, jobs: Sequence[Job[Answer]], serving: Serving) -> list[Outcome]:
        """One outcome for each job. A picture that is lost fails its own job only."""
        begin = time.monotonic_ns()
        lost = self._gather(jobs, serving.slot.spec)
        if len(lost) == len(jobs):
            return [lost[n] for n in range(len(jobs))]
        size, version = len(jobs), serving.slot.version
        images = {name: stack[:size] for name, stack in self._images.items()}
        try:
            result = serving.slot.session.infer(self._state[:size], images)
        except FAILURES as error:
            reason = str(error).partition("\n")[0][:300]
            failed = InferenceError(f"bundle {version} failed: {reason}; roll it back")
            failed.__cause__ = error
            return [lost.get(n, failed) for n in range(size)]
        end = time.monotonic_ns()
        fine = _finite(result)
        broken = InferenceError(f"bundle {version} answered with a NaN or an infinity; roll it back")
        return [
            lost[n]
            if n in lost
            else _answer(job, n, result, serving, (begin, end, size))
            if fine[n]
            else broken
            for n, job in enumerate(jobs)
        ]

    def observed(self, row: int) -> Observed:
        """A copy of a row of the last run."""
        return self._state[row : row + 1].copy(), {
            n: s[row : row + 1].copy() for n, s in self._images.items()
        }

    def _gather(self, jobs: Sequence[Job[Answer]], spec: IOSpec) -> dict[int, ServerError]:
        """Copy the inputs into the stacks, one row a job; the rows of those that are returned hold rubbish.

        The stacks are kept: fresh memory of a picture's size costs more than copying into it.
        """
        if self._spec is not spec or len(self._state) < len(jobs):
            self._spec = spec
            self._state = np.zeros((len(jobs), len(spec.state_names)), np.float32)
            self._images = {
                c.name: np.zeros((len(jobs), c.height, c.width, 3), np.uint8) for c in spec.cameras
            }
        lost: dict[int, ServerError] = {}
        for row, job in enumerate(jobs):
            self._state[row] = job.inputs.state
            try:
                for name, picture in job.inputs.images.items():
                    picture.copy_to(self._images[name][row])
            except ServerError as error:
                lost[row] = error
        return lost


def _finite(result: ChunkResult) -> npt.NDArray[np.bool_]:
    """Which rows may reach an arm."""
    return np.asarray(np.isfinite(result.actions).all(axis=(1, 2)))


def _answer(
    job: Job[Answer], row: int, result: ChunkResult, serving: Serving, run: tuple[int, int, int]
) -> Answer:
    begin, end, size = run
    return Answer(
        actions=result.actions[row],
        features=result.features[row],
        version=serving.slot.version,
        epoch=serving.epoch,
        exec_ms=(end - begin) / 1e6,
        queue_ms=(begin - job.queued_ns) / 1e6,
        batch=size,
        remaining_ms=(job.deadline_ns - end) / 1e6,
    )
