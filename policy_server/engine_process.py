"""The server's side of an engine process: start it, have it load a bundle, and ask it for chunks."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from policies.errors import PolicyError
from policies.manifest import Manifest
from policy_server.config import Backend, ServerConfig
from policy_server.engine_asked import Asked
from policy_server.engine_wire import MAX_BATCH, Exchange, Message, exchange_bytes, receive, send
from policy_server.hanging import FIRST_LOOK_S, LOOK_S, Patience, look_at
from protos.frames import LaneShape

_OPEN_S = 120.0
_LOAD_S = 600.0  # torch.compile, on a small machine that is busy
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ENDED: list[subprocess.Popen[bytes]] = []  # killed, not yet waited for


class EngineError(PolicyError):
    """An engine process is gone or hangs, or its engine failed; the bundle needs to be loaded again."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What an engine process says of a bundle that it has verified."""

    manifest: Manifest
    content_id: str
    signer: str

    @property
    def version(self) -> str:
        return self.content_id[:12]


Answered = Callable[[Message | PolicyError], None]


class EngineProcess:
    """A child process with one bundle. It ends when this object is no longer referred to."""

    def __init__(self) -> None:
        _reap()
        mine, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "policy_server.quietly", "policy_server.engine", str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._socket = mine
        # What is said to it is short: one that lets so much of it lie that there is no room has stopped.
        self._mouth = mine.dup()
        self._mouth.setblocking(False)
        self._speaking = threading.Lock()
        self._threads = 1
        # By reference counting: an inference that runs on an evicted bundle still ends in peace.
        weakref.finalize(self, mine.close)
        weakref.finalize(self, self._mouth.close)
        self._finalizer = weakref.finalize(self, _end, self._process, mine)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._finalizer.alive and self._process.poll() is None

    def close(self) -> None:
        """End the process now. Safe to call twice."""
        self._finalizer()

    def open(self, path: Path, trust: Path) -> Opened:
        """Have the bundle verified. Raises PolicyError with the reason."""
        reply = self.ask({"op": "open", "path": str(path), "trust": str(trust)}, _OPEN_S)
        manifest = Manifest.from_bytes(reply["manifest"].encode())
        return Opened(manifest, reply["content_id"], reply["signer"])

    def load(self, opened: Opened, backend: Backend, config: ServerConfig) -> tuple[Exchange, Message]:
        """Load and prove the bundle opened before; returns the memory shared with it and what it says.

        Raises PolicyError with the reason.
        """
        fd = os.memfd_create(f"engine-{opened.version}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, -(-exchange_bytes(opened.manifest) // mmap.PAGESIZE) * mmap.PAGESIZE)
            # Cut short by a child gone mad, the memory would end the server with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            request: Message = {
                "op": "load",
                "backend": backend,
                "threads": config.threads,
                "priority": config.priority,
                "warm_runs": config.warm_runs,
                "max_batch": min(config.max_batch, MAX_BATCH),
            }
            reply = self.ask(request, _LOAD_S, fd)
            self._threads = config.threads
            exchange = Exchange(fd, opened.manifest)
        finally:
            os.close(fd)
        return exchange, reply

    def ask(
        self, request: Message, limit_s: float, fd: int | None = None, expected_s: float | None = None
    ) -> Message:
        """One request, one answer, within ``limit_s``; one that is expected in ``expected_s`` sooner, if
        the process hangs. Raises PolicyError: refused; EngineError: gone, silent or failed."""
        try:
            self._socket.settimeout(limit_s)
            self._say(request, fd)
            reason = None if expected_s is None else self._hangs(expected_s)
            if reason is not None:
                raise self._ended(reason)
            reply, _ = receive(self._socket)
        except TimeoutError:
            raise self._ended(f"did not answer within {limit_s:.0f} s") from None
        except (EOFError, OSError):
            raise EngineError(f"the engine process ended ({self._ending()})") from None
        refused = _refused(reply)
        if refused is not None:
            raise refused
        return reply

    def ask_soon(self, request: Message, expected_s: float, answered: Answered) -> Asked:
        """As `ask` of what is expected in ``expected_s``, by the event loop, which goes on meanwhile.

        ``answered`` is called with the answer or an error. Raises EngineError when it can't be asked.
        """
        try:
            self._say(request, None)
        except OSError:
            raise self._ended("is gone") from None
        patience = partial(Patience, partial(look_at, self.pid), expected_s, self._threads)
        try:
            return Asked(self._mouth, patience, partial(self._answered, answered))
        except OSError as error:  # its answer would be taken for another's
            raise self._ended(f"cannot be listened to ({error.strerror})") from None

    def _answered(self, answered: Answered, reply: Message | str) -> None:
        if isinstance(reply, str):
            answered(self._ended(reply))
        else:
            answered(_refused(reply) or reply)

    def map_lane(self, lane: int, shape: LaneShape, fd: int) -> None:
        """See `policy_server.lanes.LaneReader`. Raises EngineError."""
        notice: Message = {"op": "lane", "lane": lane, "slots": shape.slots, "slot_bytes": shape.slot_bytes}
        try:
            self._say(notice, fd)
        except OSError:
            raise self._ended("is gone") from None

    def forget_lane(self, lane: int) -> None:
        """See `policy_server.lanes.LaneReader`."""
        with contextlib.suppress(OSError, EngineError):
            self._say({"op": "lane", "lane": lane}, None)

    def _say(self, message: Message, fd: int | None) -> None:
        """Never waits. Raises OSError when the process is gone, EngineError when it does not listen."""
        try:
            with self._speaking:
                send(self._mouth, message, fd)
        except BlockingIOError:
            raise self._ended("does not read what it is told") from None

    def _hangs(self, expected_s: float) -> str | None:
        """Wait for an answer, or for the end of the process; returns why it would be in vain, else None."""
        begin = time.monotonic()
        answer = select.poll()
        answer.register(self._socket, select.POLLIN)
        if answer.poll(FIRST_LOOK_S * 1e3):
            return None
        patience = Patience(partial(look_at, self.pid), expected_s, self._threads)
        while not answer.poll(LOOK_S * 1e3):
            reason = patience.reason(time.monotonic() - begin)
            if reason is not None:
                return reason
        return None

    def _ended(self, reason: str) -> EngineError:
        self.close()
        return EngineError(f"the engine {reason} and was ended")

    def _ending(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed"
        return f"signal {-code}" if code < 0 else f"status {code}"


def _refused(reply: Message) -> PolicyError | None:
    """What an engine's answer is, if it is a refusal."""
    if "error" not in reply:
        return None
    return (PolicyError if reply.get("policy") else EngineError)(reply["error"])


def _end(process: subprocess.Popen[bytes], end: socket.socket) -> None:
    # Wakes a thread that waits for an answer. Closed under it, the descriptor could be another's by the
    # time it looks, and it would wait on; it is closed when nobody refers to the engine any more.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    process.kill()
    _ENDED.append(process)


def wait_for_ended(limit_s: float) -> None:
    """Return when every engine process that was closed is gone, or after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    for process in _ENDED:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
    _reap()


def _reap() -> None:
    """Collect what was ended before; nobody should wait for the kernel to free a large process."""
    _ENDED[:] = [process for process in _ENDED if process.poll() is None]
