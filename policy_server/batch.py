"""A batch in the inference thread: gather the inputs, run the bundle, part the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.session import ChunkResult
from policy_server.backends import FAILURES
from policy_server.errors import InferenceError, ServerError
from policy_server.process_session import ProcessSession
from policy_server.schedule import Job
from policy_server.slots import Serving
from policy_server.spec import Inputs, IOSpec

log = logging.getLogger(__name__)


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
#: State (B, S) and pictures (B, H, W, 3) by camera.
Stacks = tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.uint8]]]
#: One observation in memory of its own: state (1, S), pictures (1, H, W, 3) by camera.
Observed = tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.uint8]]]


class BatchRunner:
    """Runs jobs together; owned by the inference thread."""

    def __init__(self) -> None:
        self._spec: IOSpec | None = None
        self._own: Stacks = (np.zeros((0, 0), np.float32), {})
        self._last: Stacks | Inputs = self._own

    def run(self, jobs: Sequence[Job[Answer]], serving: Serving) -> list[Outcome]:
        """One outcome for each job. A picture that is lost fails its own job only."""
        begin = time.monotonic_ns()
        size, session = len(jobs), serving.slot.session
        try:
            if isinstance(session, ProcessSession):
                with session.staged(size) as stacks:  # straight to where the engine reads
                    self._last = stacks
                    lost = _gather(jobs, stacks)
                    expected_s = serving.slot.costs.expected_ns(size) / 1e9
                    result = session.run(size, expected_s=expected_s) if len(lost) < size else None
            else:
                self._last = stacks = self._stacks(serving.slot.spec, size)
                lost = _gather(jobs, stacks)
                result = session.infer(*stacks) if len(lost) < size else None
        except FAILURES as error:
            return [failure(serving, error)] * size
        if result is None:
            return [lost[n] for n in range(size)]
        return outcomes(jobs, result, serving, begin, lost)

    def ran_in_place(self, inputs: Inputs) -> None:
        """The last run was of these inputs, which nobody copied."""
        self._last = inputs

    def forget(self) -> None:
        """Nobody will ask what was `observed`: a client's pictures are kept no longer than the client."""
        if isinstance(self._last, Inputs):
            self._last = self._own

    def observed(self, row: int) -> Observed:
        """A copy of a row of the last run. Raises LaneError when its pictures are not there any more."""
        if isinstance(self._last, Inputs):
            images = {name: np.zeros((1, *p.shape), np.uint8) for name, p in self._last.images.items()}
            for name, picture in self._last.images.items():
                picture.copy_to(images[name][0])
            return self._last.state[None].copy(), images
        state, images = self._last
        return state[row : row + 1].copy(), {
            name: stack[row : row + 1].copy() for name, stack in images.items()
        }

    def _stacks(self, spec: IOSpec, size: int) -> Stacks:
        """Room for so many observations, kept: fresh memory of that size costs more than copying into it."""
        state, images = self._own
        if self._spec is not spec or len(state) < size:
            self._spec = spec
            state = np.zeros((size, len(spec.state_names)), np.float32)
            images = {c.name: np.zeros((size, c.height, c.width, 3), np.uint8) for c in spec.cameras}
            self._own = state, images
        return state[:size], {name: stack[:size] for name, stack in images.items()}


def _gather(jobs: Sequence[Job[Answer]], stacks: Stacks) -> dict[int, ServerError]:
    """Copy the inputs, one row a job; the rows of the jobs that are returned hold rubbish."""
    state, images = stacks
    lost: dict[int, ServerError] = {}
    for row, job in enumerate(jobs):
        state[row] = job.inputs.state
        try:
            for name, picture in job.inputs.images.items():
                picture.copy_to(images[name][row])
        except ServerError as error:
            lost[row] = error
    return lost


def bug(error: BaseException) -> InferenceError:
    """What those are told whose run met something that nobody thought of."""
    log.error("inference.bug", exc_info=error)
    return InferenceError("a fault of the server; its log says more")


def failure(serving: Serving, error: Exception) -> InferenceError:
    """What those are told whose run failed with ``error``."""
    reason = str(error).partition("\n")[0][:300]
    failed = InferenceError(f"bundle {serving.slot.version} failed: {reason}; roll it back")
    failed.__cause__ = error
    return failed


def outcomes(
    jobs: Sequence[Job[Answer]],
    result: ChunkResult,
    serving: Serving,
    begin_ns: int,
    lost: Mapping[int, ServerError],
) -> list[Outcome]:
    """Part the result of a run that began then, without the rows that are ``lost``."""
    times = begin_ns, time.monotonic_ns(), len(jobs)
    fine = _finite(result)
    broken = InferenceError(f"bundle {serving.slot.version} answered with a NaN or an infinity; roll it back")
    return [
        lost[n] if n in lost else _answer(job, n, result, serving, times) if fine[n] else broken
        for n, job in enumerate(jobs)
    ]


def _finite(result: ChunkResult) -> npt.NDArray[np.bool_]:
    """Which rows may reach an arm and the monitors that watch it."""
    actions, features = np.isfinite(result.actions), np.isfinite(result.features)
    return np.asarray(actions.all(axis=(1, 2)) & features.all(axis=1))


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
