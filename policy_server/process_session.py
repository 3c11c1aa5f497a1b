"""A bundle in an engine process, asked as any other session is, or by the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from policies.bundle import Precision
from policies.errors import PolicyError
from policies.session import ChunkResult, Floats, Pixels, PolicySession, check_inputs
from policy_server.config import Backend, ServerConfig
from policy_server.engine_asked import Asked
from policy_server.engine_process import EngineError, EngineProcess, Opened
from policy_server.engine_wire import MAX_BATCH, Exchange, Message
from policy_server.hanging import LIMIT_S
from policy_server.lanes import Lane

_IDLE_S = 600.0  # spare time may be rare


@dataclass(frozen=True, slots=True)
class InLane:
    """Pictures of one observation: their slots in a lane, in the order of the manifest's cameras."""

    lane: Lane
    slots: list[int]


#: The chunk, an error, or None: it has to be run another way.
Ran = Callable[[ChunkResult | PolicyError | None], None]


class ProcessSession(PolicySession):
    """A `PolicySession` whose bundle runs in an engine process."""

    def __init__(
        self, engine: EngineProcess, exchange: Exchange, opened: Opened, precision: Precision
    ) -> None:
        super().__init__(opened.manifest, opened.version, precision)
        self._engine = engine
        self._exchange = exchange
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Of the engine process."""
        return self._engine.pid

    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """See `policies.session.PolicySession.infer`. Raises EngineError when the process is gone."""
        return self._infer(state, images, idle=False)

    def infer_idle(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """The same in the processor's spare time only, however long that takes."""
        return self._infer(state, images, idle=True)

    @contextmanager
    def staged(self, batch: int) -> Iterator[tuple[Floats, dict[str, Pixels]]]:
        """Where the engine reads ``batch`` observations: fill them in, then `run`. It is locked."""
        if batch > MAX_BATCH:
            raise EngineError(f"{batch} observations at once; at most {MAX_BATCH} fit")
        exchange = self._exchange
        with self._lock:
            yield exchange.state[:batch], {name: place[:batch] for name, place in exchange.images.items()}

    def run(self, batch: int, idle: bool = False, expected_s: float = 0.0) -> ChunkResult:
        """Run what is `staged`; ``expected_s`` is what it usually takes. Raises EngineError when the
        process is gone or hangs."""
        request: Message = {"op": "infer", "batch": batch, "idle": idle}
        if idle:  # it may stand still for long
            self._engine.ask(request, _IDLE_S)
        else:
            self._engine.ask(request, LIMIT_S, expected_s=expected_s)
        return self._result(batch)

    def begin_in_place(self, state: Floats, where: InLane, expected_s: float, ran: Ran) -> Asked | None:
        """Have one observation run, ``state`` (S,) and pictures that lie in a lane; by the event loop.

        ``ran`` is called with the chunk, with an error, or with None when the engine does not have the lane.
        None when that is closed already, or another run is under way. Raises EngineError.
        """
        if not self._lock.acquire(blocking=False):
            return None
        with ExitStack() as begun:
            begun.callback(self._lock.release)
            if not where.lane.lend(self._engine):
                return None
            self._exchange.state[0] = state
            request: Message = {"op": "infer", "batch": 1, "idle": False}
            request |= {"lane": where.lane.id, "slots": where.slots}
            asked = self._engine.ask_soon(request, expected_s, partial(self._ran_in_place, ran))
            begun.pop_all()
        return asked

    def abandon(self) -> None:
        """Give up a run begun in place, and the engine with it."""
        self._engine.close()
        self._lock.release()

    def _ran_in_place(self, ran: Ran, reply: Message | PolicyError) -> None:
        result: ChunkResult | PolicyError | None
        if isinstance(reply, PolicyError):
            result = reply
        else:
            result = None if "unknown" in reply else self._result(1)
        self._lock.release()
        ran(result)

    @property
    def alive(self) -> bool:
        """Whether the process is there to be asked."""
        return self._engine.alive

    def close(self) -> None:
        """End the process now."""
        self._engine.close()

    def _infer(self, state: Floats, images: Mapping[str, Pixels], idle: bool) -> ChunkResult:
        check_inputs(self.manifest, state, images)
        with self.staged(state.shape[0]) as (states, stacks):
            states[:] = state
            for name, stack in stacks.items():
                stack[:] = images[name]
            return self.run(state.shape[0], idle)

    def _result(self, batch: int) -> ChunkResult:
        return ChunkResult(_own(self._exchange.actions[:batch]), _own(self._exchange.features[:batch]))


def _own(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.array(array)


def load_session(
    engine: EngineProcess, opened: Opened, backend: Backend, config: ServerConfig
) -> tuple[ProcessSession, Message]:
    """Have ``engine`` load and prove the bundle it opened; what it says of that too. Raises PolicyError."""
    exchange, said = engine.load(opened, backend, config)
    return ProcessSession(engine, exchange, opened, said["precision"]), said
