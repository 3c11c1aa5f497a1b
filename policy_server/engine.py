"""``python -m policy_server.engine FD``: a process that verifies, proves and runs one bundle.

The server starts it through `policy_server.quietly`, so that it does not even import at others' expense.

A process, because loading a large graph holds the interpreter's lock for a tenth of a second and
leaves its memory scattered, and because a graph that crashes or hangs its engine must not take the
server along. It has no authority: what it is told comes over the socket it was started with, what it
answers goes into memory that was given to it, and it ends when the socket does.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from policies.bundle import Bundle
from policies.errors import BundleError, PolicyError
from policies.fastest import ENGINE_ERRORS
from policies.keys import TrustStore
from policies.session import Pixels, PolicySession
from policy_server.backends import open_session
from policy_server.claim import EngineClaim
from policy_server.costs import measure
from policy_server.engine_lanes import EngineLanes
from policy_server.engine_wire import Exchange, Message, receive, send
from policy_server.errors import ServerError
from policy_server.proving import prove
from policy_server.quietly import give_way


class Engine:
    """The one bundle of this process, step by step: `open`, `load`, then `infer` for ever."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._session: PolicySession | None = None
        self._exchange: Exchange | None = None
        self._claim: EngineClaim | None = None
        self._lanes = EngineLanes()
        self._idle = ThreadPoolExecutor(1, "idle", initializer=_only_when_idle)

    def answer(self, request: Message, fd: int | None) -> Message:
        """Do what one request asks for. Raises PolicyError, ServerError or an engine's error."""
        op = request["op"]
        if op == "infer":
            batch = int(request["batch"])
            assert self._claim is not None
            self._claim.take(request["idle"])
            if request["idle"]:
                return self._idle.submit(self._infer, batch).result()
            if "lane" in request:
                return self._infer_in_place(request["lane"], request["slots"])
            return self._infer(batch)
        if op == "open":
            return _behind(lambda: self._open(request), quietly=True)
        assert fd is not None
        # Threads inherit their maker's niceness; one that cannot be raised again must not be lowered.
        quietly = request["threads"] == 1 or _can_raise()
        reply = _behind(lambda: self._load(request, fd), quietly)
        _level()
        self._claim = EngineClaim(request["priority"])
        reply["priority"] = self._claim.granted
        return reply

    def _open(self, request: Message) -> Message:
        begin = time.perf_counter()
        self._bundle = bundle = Bundle.open(request["path"], TrustStore.load(Path(request["trust"])))
        # As it was signed, so that the server reads what was verified.
        text = bundle.manifest.model_dump_json()
        return {
            "manifest": text,
            "content_id": bundle.content_id,
            "signer": bundle.signer,
            "ms": (time.perf_counter() - begin) * 1e3,
        }

    def _load(self, request: Message, fd: int) -> Message:
        bundle = self._bundle
        assert bundle is not None
        begin = time.perf_counter()
        self._exchange = Exchange(fd, bundle.manifest)
        os.close(fd)
        # Threads that wait for each other without sleeping are no gain where others take their core.
        spinning = request["priority"] > 0 and request["threads"] > 1
        self._session = open_session(bundle, request["backend"], request["threads"], spinning)
        loaded = time.perf_counter()
        run_ms = prove(self._session, bundle, request["warm_runs"])
        costs = measure(self._session, request["max_batch"], request["warm_runs"])
        _give_memory_back()
        warm = time.perf_counter()
        return {
            "load_ms": (loaded - begin) * 1e3,
            "warm_ms": (warm - loaded) * 1e3,
            "run_ms": run_ms,
            "costs": costs.measured_ms,
            "precision": self._session.precision,
            "passed_over": self._session.passed_over,
        }

    def notice(self, notice: Message, fd: int | None) -> None:
        """Do what needs no answer: map a lane, or let go of one."""
        if fd is not None:
            self._lanes.map(notice["lane"], notice["slots"], notice["slot_bytes"], fd)
            os.close(fd)
        else:
            self._lanes.forget(notice["lane"])

    def _infer(self, batch: int) -> Message:
        assert self._exchange is not None
        return self._run(batch, {name: image[:batch] for name, image in self._exchange.images.items()})

    def _infer_in_place(self, lane: int, slots: list[int]) -> Message:
        """One observation, its state in the exchange and its pictures in a client's lane."""
        assert self._bundle is not None
        images = self._lanes.images(lane, slots, self._bundle.manifest.cameras)
        return {"unknown": True} if images is None else self._run(1, images)

    def _run(self, batch: int, images: dict[str, Pixels]) -> Message:
        exchange, session = self._exchange, self._session
        assert exchange is not None
        assert session is not None
        result = session.infer(exchange.state[:batch], images)
        for found, place in ((result.actions, exchange.actions), (result.features, exchange.features)):
            if found.shape != place[:batch].shape:
                raise BundleError(f"the graph answers with {found.shape}, not {place[:batch].shape}")
            np.copyto(place[:batch], found)
        return {}


def serve(end: socket.socket) -> None:
    """Answer requests until the other end closes."""
    engine = Engine()
    while True:
        try:
            request, fd = receive(end)
        except (EOFError, OSError):
            return
        if request["op"] == "lane":
            engine.notice(request, fd)
            continue
        try:
            reply = engine.answer(request, fd)
        except (PolicyError, ServerError) as error:
            reply = {"error": str(error), "policy": True}
        except ENGINE_ERRORS as error:
            reply = {"error": str(error).strip().partition("\n")[0][:300], "policy": False}
        try:
            send(end, reply)
        except OSError:
            return


def _behind(work: Callable[[], Message], quietly: bool) -> Message:
    """Run ``work`` in a thread of its own; ``quietly``: with less claim to the processor."""

    def first() -> None:
        if quietly:
            give_way()

    with ThreadPoolExecutor(1, "loader", initializer=first) as thread:
        return thread.submit(work).result()


def _can_raise() -> bool:
    """Whether a lowered niceness can be taken back here: tried, in a thread that ends then."""

    def attempt() -> bool:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, nice + 1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except PermissionError:
            return False
        return True

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(attempt).result()


def _level() -> None:
    """Give the session's own threads, if it made any while loading, this thread's niceness."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    for task in os.listdir("/proc/self/task"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(task), nice)
        except (ProcessLookupError, PermissionError):
            continue  # ended meanwhile; or not ours to raise, and then it was not lowered


def _only_when_idle() -> None:
    """This thread runs only when nothing else wants the processor (sched(7), SCHED_IDLE)."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _give_memory_back() -> None:
    """What loading needed and serving does not (malloc_trim(3); other C libraries have none)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 once the server has gone."""
    parser = argparse.ArgumentParser(prog="python -m policy_server.engine", description=__doc__)
    parser.add_argument("fd", type=int, help="socket to the server that started this")
    # Ctrl-C is for the server, which ends this by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=parser.parse_args(argv).fd) as end:
        serve(end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
