"""The runtime's end of a bus process: start it, read its samples, send waypoints, stop the arm.

Reading, commanding and the e-stop are a few memory copies and never wait. ``enable``, ``disable``
and the other requests wait for the process's acknowledgement (a few cycles); from an event loop
call them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from hal.types import NUM_JOINTS
from runtime.bus_process import BusConfig
from runtime.bus_records import (
    COMMAND,
    REPLY,
    REQUEST,
    STATE,
    BusFiles,
    BusSample,
    BusWords,
    Op,
    to_sample,
)
from runtime.errors import BusProcessError
from runtime.nouns import Waypoint
from runtime.realtime import Measure, RealtimeReport
from runtime.ring import RingReader, RingWriter
from runtime.streams import NS

__all__ = ["BusConfig", "BusHandle", "BusSample", "raise_estop"]

log = logging.getLogger(__name__)

_ALIVE_NS = NS // 2
_POLL_S = 0.001


class BusHandle:
    """One arm: ``start`` → ``latest``/``since``/``command`` … → ``stop``. Several threads may use it."""

    def __init__(self, config: BusConfig) -> None:
        self.config = config
        self._files = config.files
        self._process: subprocess.Popen[bytes] | None = None
        self._words: BusWords | None = None
        self._state: RingReader | None = None
        self._commands: RingWriter | None = None
        self._requests: RingWriter | None = None
        self._replies: RingReader | None = None
        self._lock = threading.Lock()
        self._command_lock = threading.Lock()

    def start(self, timeout_s: float = 60.0) -> RealtimeReport:
        """Start the process and wait for its first cycle; what the kernel granted it.

        Call it again after the process died: rings and sequence numbers carry on, the arm is not
        energised. The first start on a machine compiles for some seconds. An arm that cannot be reached is
        not an error here but a fault in the samples. Raises BusProcessError or RingError.
        """
        if self._process is not None and self._process.poll() is None:
            raise BusProcessError(f"the bus process of {self.config.arm} is running", "stop it first")
        self._files.run_dir.mkdir(parents=True, exist_ok=True)
        if self._words is None:
            self._map()
        self._files.report.unlink(missing_ok=True)
        self._files.config.write_text(self.config.model_dump_json())
        begun_ns = time.monotonic_ns()
        command = [sys.executable, "-m", "runtime.bus_process", "--config", str(self._files.config)]
        command += ["--parent", str(os.getpid()), "--log", logging.getLevelName(log.getEffectiveLevel())]
        # The kernel's death signal follows the thread that started a process, so it suits the main one only.
        if threading.current_thread() is threading.main_thread():
            command.append("--die-with-thread")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=_source_root())
        deadline = time.monotonic() + timeout_s
        while self._mapped().heartbeat_ns < begun_ns:
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self._kill()
                raise BusProcessError(
                    f"the bus process of {self.config.arm} did not start: {self._start_error(status)}",
                    "see its log, or run `ratchet doctor`",
                )
            time.sleep(0.005)
        return self.realtime_report()

    def latest(self) -> BusSample | None:
        """The newest sample, or None before the first."""
        newest = None if self._state is None else self._state.latest()
        return None if newest is None else to_sample(*newest)

    def since(self, index: int) -> list[BusSample]:
        """Samples after the one whose ``index`` is given (−1: all still kept), oldest first."""
        if self._state is None:
            return []
        first, records = self._state.since(index)
        return [to_sample(first + offset, record) for offset, record in enumerate(records)]

    def command(self, waypoint: Waypoint) -> None:
        """Put a waypoint where the next cycle looks; it is judged there, ``BusSample.command_seq`` follows.

        A position of another shape goes on as NaN, to be rejected and counted with the others.
        """
        with self._command_lock:
            commands = self._require(self._commands)
            record = commands.record
            record["seq"], record["source"] = waypoint.seq, waypoint.source
            record["position"] = waypoint.position if waypoint.position.shape == (NUM_JOINTS,) else np.nan
            record["target_ns"], record["expires_ns"] = waypoint.target_ns, waypoint.expires_ns
            record["leader"] = waypoint.leader
            commands.push()

    def estop(self) -> None:
        """Stop the arm at its next cycle and latch. Never waits, never queued, works from any thread."""
        self._mapped().raise_estop()

    def enable(self, timeout_s: float = 2.0) -> None:
        """Energise at the measured pose and accept waypoints. Raises BusProcessError when refused."""
        self._ask(Op.ENABLE, timeout_s)

    def disable(self, timeout_s: float = 2.0) -> None:
        """Begin to let the arm down; it is released when ``latest().torque`` is False."""
        self._ask(Op.DISABLE, timeout_s)

    def release(self, timeout_s: float = 2.0) -> None:
        """Take the torque away at once: the arm drops. For service, with a hand under it."""
        self._ask(Op.RELEASE, timeout_s)

    def hold(self, timeout_s: float = 2.0) -> None:
        """Brake and stand still until the next waypoint."""
        self._ask(Op.HOLD, timeout_s)

    def acknowledge(self, timeout_s: float = 2.0) -> None:
        """Accept waypoints again after a contact stop."""
        self._ask(Op.ACKNOWLEDGE, timeout_s)

    def clear_estop(self, timeout_s: float = 2.0) -> None:
        """Unlatch the e-stop. The arm stays held; ``enable`` moves it again."""
        self._ask(Op.CLEAR_ESTOP, timeout_s, self._mapped().estops)

    def clear_fault(self, timeout_s: float = 2.0) -> None:
        """Command the arm again after a fault, without energising it."""
        self._ask(Op.CLEAR_FAULT, timeout_s)

    def alive(self) -> bool:
        """The process runs and has cycled within half a second."""
        if self._process is None or self._process.poll() is not None or self._words is None:
            return False
        return time.monotonic_ns() - self._words.heartbeat_ns < _ALIVE_NS

    @property
    def pid(self) -> int | None:
        """The process while it is running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def realtime_report(self) -> RealtimeReport:
        """What the kernel granted the process at its start."""
        report = self._read_report()
        return RealtimeReport(tuple(Measure(*measure) for measure in report.get("realtime", ())))

    def stop(self, timeout_s: float = 15.0) -> None:
        """Let the arm down, then end the process; after ``timeout_s`` it is killed and the watchdog holds."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            try:
                self._ask(Op.STOP, min(2.0, timeout_s))
                process.wait(timeout_s)
            except (BusProcessError, subprocess.TimeoutExpired) as error:
                log.error("bus process killed arm=%s: %s", self.config.arm, error)
        self._kill()

    def _map(self) -> None:
        words = self._files.create()
        self._state = RingReader(self._files.state, STATE)
        self._commands = RingWriter(self._files.command, COMMAND)
        self._requests = RingWriter(self._files.request, REQUEST)
        self._replies = RingReader(self._files.reply, REPLY)
        self._words = words

    def _ask(self, op: Op, timeout_s: float, argument: int = 0) -> None:
        """Send one request and wait for its reply."""
        with self._lock:
            requests, replies = self._require(self._requests), self._require_reader(self._replies)
            seen = replies.head - 1
            requests.record["op"], requests.record["argument"] = op, argument
            index = requests.push()
            deadline = time.monotonic() + timeout_s
            over = False
            while not over:
                # Looked at once more afterwards: a process that stops answers with its last breath.
                over = time.monotonic() > deadline or self.pid is None
                first, records = replies.since(seen)
                for record in records:
                    if int(record["request"]) == index:
                        return self._judge(op, record)
                seen = first + len(records) - 1
                time.sleep(_POLL_S)
        raise BusProcessError(
            f"the bus process of {self.config.arm} did not acknowledge {op.name.lower()}",
            "its motors' watchdog holds the arm; start it again",
        )

    def _judge(self, op: Op, record: Any) -> None:
        if not record["granted"]:
            why = bytes(record["message"]).decode(errors="replace")
            raise BusProcessError(f"{op.name.lower()} of {self.config.arm} refused: {why}")

    def _start_error(self, status: int | None) -> str:
        error = self._read_report().get("error")
        return str(error or ("no cycle in time" if status is None else f"exit status {status}"))

    def _read_report(self) -> dict[str, Any]:
        try:
            report: dict[str, Any] = json.loads(self._files.report.read_text())
        except (OSError, ValueError):
            return {}
        return report

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _mapped(self) -> BusWords:
        if self._words is None:
            raise BusProcessError(f"the bus process of {self.config.arm} was never started", "call start()")
        return self._words

    def _require(self, ring: RingWriter | None) -> RingWriter:
        self._mapped()
        assert ring is not None
        return ring

    def _require_reader(self, ring: RingReader | None) -> RingReader:
        self._mapped()
        assert ring is not None
        return ring


def raise_estop(run_dir: Path, arm: str = "follower") -> None:
    """Stop an arm from any process of the machine. Raises RingError when no runtime made its files."""
    BusWords(BusFiles(run_dir, arm).words).raise_estop()


def _source_root() -> Path:
    """Where ``-m runtime.bus_process`` finds the package, whatever the caller's directory is."""
    return Path(__file__).resolve().parent.parent
