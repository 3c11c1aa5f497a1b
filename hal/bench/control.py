"""The bench's control socket: one JSON object per line in, one per line out.

A request is ``{"op": name, ...arguments}``; a reply ``{"ok": true, "result": {...}}`` or
``{"ok": false, "error": "what; remedy"}``. Requests are carried out by the bench's own loop,
between two steps.
"""

from __future__ import annotations

import json
import logging
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from hal.bench.judge import GoalLog, JudgeReport
from hal.errors import BenchError

if TYPE_CHECKING:  # clients need neither MuJoCo nor OpenCV
    from hal.bench.mjpeg import CameraMode
    from hal.bench.world import Region

log = logging.getLogger(__name__)

Arguments = dict[str, Any]
Handler = Callable[[Arguments], Arguments]

_MAX_LINE = 64 * 1024
_MAX_REPLY = 4 * 1024 * 1024  # a whole goal log has 0.6 MB
_MAX_PATH = 100  # the kernel's limit on unix socket paths, less a margin
_REPLY_TIMEOUT_S = 10.0


class BenchInfo(BaseModel):
    """Where a running bench is reached, and how it is doing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    follower_port: str
    leader_port: str
    baud: int
    cameras: dict[str, str]
    control: str
    width: int
    height: int
    steps: int = 0
    skipped: int = 0
    cpu_s: float = 0.0


class BenchTask(BaseModel):
    """The task as the world sees it, and whether the demonstrator is at work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    success: bool
    lifted: bool
    dropped: bool
    cube_xy: tuple[float, float]
    in_gap: bool
    demonstrating: bool


class ControlServer:
    """Accepts clients in threads; ``serve_pending`` answers them from the loop that owns the bench."""

    def __init__(self, path: Path) -> None:
        if len(str(path)) > _MAX_PATH:
            raise BenchError(f"control socket path {path} is too long", "use a shorter run directory")
        path.unlink(missing_ok=True)
        self.path = path
        self._pending: queue.SimpleQueue[tuple[Arguments, Future[Arguments]]] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(8)
        self._closing = False
        threading.Thread(target=self._accept, name="bench-control", daemon=True).start()

    def serve_pending(self, handler: Handler) -> None:
        """Carry out every request that is waiting; does not block."""
        while not self._pending.empty():
            request, reply = self._pending.get()
            try:
                reply.set_result(handler(request))
            except (BenchError, KeyError, TypeError, ValueError) as error:
                reply.set_exception(error)

    def close(self) -> None:
        """Stop accepting."""
        self._closing = True
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(client,), name="bench-client", daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as stream:
            try:
                while line := stream.readline(_MAX_LINE):
                    stream.write(json.dumps(self._answer(line)).encode() + b"\n")
                    stream.flush()
            except (BrokenPipeError, ConnectionResetError):
                log.debug("bench_client_left")

    def _answer(self, line: bytes) -> Arguments:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("op"), str):
                raise BenchError("a request must be a JSON object with an op", "see hal/bench/control.py")
            reply: Future[Arguments] = Future()
            self._pending.put((request, reply))
            return {"ok": True, "result": reply.result(_REPLY_TIMEOUT_S)}
        except (BenchError, KeyError, TypeError, ValueError, TimeoutError) as error:
            what = f"missing argument {error}" if isinstance(error, KeyError) else str(error)
            return {"ok": False, "error": what or type(error).__name__}


class BenchClient:
    """Talks to a running bench. Every call raises BenchError when the bench refuses or is gone."""

    def __init__(self, path: str | Path, timeout_s: float = _REPLY_TIMEOUT_S) -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(self.path)
        except OSError as error:
            self._socket.close()
            raise BenchError(
                f"no bench at {self.path} ({error})", "start one with python -m hal.bench.process"
            ) from error
        self._stream = self._socket.makefile("rwb")

    def call(self, op: str, **arguments: Any) -> Arguments:
        """Send one request and return its result."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
                self._stream.flush()
                line = self._stream.readline(_MAX_REPLY)
            except OSError as error:
                raise BenchError(f"the bench at {self.path} does not answer {op} ({error})") from error
        if not line:
            raise BenchError(f"the bench at {self.path} closed the connection during {op}")
        reply = json.loads(line)
        if not reply["ok"]:
            raise BenchError(f"the bench refused {op}: {reply['error']}")
        result: Arguments = reply["result"]
        return result

    def reset(self, seed: int, region: Region = "full") -> None:
        """Put the cube where ``seed`` says. The arm goes home only while none of its motors is energised."""
        self.call("reset", seed=seed, region=region)

    def demonstrate(self, seed: int) -> None:
        """Let the demonstrator move the leader from now on, until done."""
        self.call("demonstrate", seed=seed)

    def stop_demonstration(self) -> None:
        """The hand leaves the leader where it is."""
        self.call("stop_demonstration")

    def task(self) -> BenchTask:
        """The state of the task."""
        return BenchTask.model_validate(self.call("task"))

    def motor_fault(
        self, joint: str, friction: float = 0.0, heat: float = 0.0, supply: float = 0.0, strain: bool = False
    ) -> None:
        """Add friction (N·m) and heating (°C/s) to a joint of the follower, feed it with ``supply`` V
        instead of its nominal voltage, make its overload protection trip (``strain``); zeros heal it."""
        self.call("motor_fault", joint=joint, friction=friction, heat=heat, supply=supply, strain=strain)

    def reboot_motor(self, joint: str) -> None:
        """Take the power from one of the follower's motors for a moment: its RAM is as after a start."""
        self.call("reboot_motor", joint=joint)

    def bus_fault(self, arm: str, **faults: Any) -> None:
        """Set faults of the "follower" or "leader" bus; without any, heal it.

        ``drop``, ``corrupt`` and ``garble`` are probabilities, ``delay_ms``, ``silent_id`` a motor's id,
        ``twin_id`` the id of one that has a twin, ``disconnect`` a bool.
        """
        self.call("bus_fault", arm=arm, **faults)

    def camera_fault(self, camera: str, mode: CameraMode) -> None:
        """Make a camera fail: "freeze", "black", "half", "stall", "gone"; "ok" heals it."""
        self.call("camera_fault", camera=camera, mode=mode)

    def obstacle(self, xyz: tuple[float, float, float] | None) -> None:
        """Put the block in the arm's way, centred at ``xyz`` m, or take it away."""
        self.call("obstacle", xyz=xyz)

    def judge_reset(self, arm: str = "follower") -> None:
        """Let the judge of one arm forget what it has seen."""
        self.call("judge_reset", arm=arm)

    def judge(self, arm: str = "follower") -> JudgeReport:
        """What the motors of one arm were told since the last ``judge_reset``, as they got it."""
        return JudgeReport.model_validate(self.call("judge", arm=arm))

    def goal_log(self, arm: str = "follower") -> GoalLog:
        """The last 4096 goals that reached the motors of one arm since the last ``judge_reset``."""
        return GoalLog.from_wire(self.call("goal_log", arm=arm))

    def info(self) -> BenchInfo:
        """Ports, camera addresses, counters."""
        return BenchInfo.model_validate(self.call("info"))

    def shutdown(self) -> None:
        """End the bench."""
        self.call("shutdown")

    def close(self) -> None:
        """Hang up; the bench goes on."""
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
