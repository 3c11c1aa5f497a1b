"""The runtime's end of the camera process: start it, look at the newest pictures, keep it alive."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.types import Frame
from runtime.camera_process import FRAME_CAPACITY, STATUS, CameraProcessConfig, CameraSpec
from runtime.errors import CameraProcessError
from runtime.ring import RingReader, create_ring, frame_dtype
from runtime.streams import NS, STREAMS

__all__ = ["CameraHandle", "CameraProcessConfig", "CameraSet", "CameraSpec", "CameraStatus"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """How a camera does: delivering or not, frames and failures so far, the last failure in one line."""

    ok: bool
    frames: int
    failures: int
    message: str


class CameraHandle:
    """One camera's newest picture and status. Raises RingError when its ring does not exist."""

    def __init__(self, name: str, config: CameraProcessConfig) -> None:
        self.name = name
        spec = config.cameras[name]
        stream = STREAMS.get(f"camera.{name}", STREAMS["camera.front"])
        self.fresh_ns = stream.fresh_ns
        self._frames = RingReader(config.ring(name), frame_dtype(spec.height, spec.width))
        self._status = RingReader(config.status(name), STATUS)

    @property
    def held(self) -> int:
        """How many of the last pictures can still be read."""
        return self._frames.capacity

    def latest(self, max_age_s: float | None = None) -> Frame | None:
        """The newest picture; None when it is older than ``max_age_s`` (default: the stream's freshness)."""
        found = self.newest()
        return found[1] if found is not None and self.fresh(found[1], max_age_s) else None

    def newest(self) -> tuple[int, Frame] | None:
        """The newest picture, however old, and its index in the ring; None before the first."""
        found = self._frames.latest()
        return None if found is None else (found[0], self._frame(found[1]))

    def read(self, index: int) -> Frame | None:
        """The picture at ``index`` of the ring; None when it was overwritten or is not there yet."""
        record = self._frames.at(index)
        return None if record is None else self._frame(record)

    def fresh(self, frame: Frame, max_age_s: float | None = None) -> bool:
        """Whether it is at most ``max_age_s`` old (default: the stream's freshness)."""
        limit_ns = self.fresh_ns if max_age_s is None else round(max_age_s * NS)
        return time.monotonic_ns() - frame.t_ns <= limit_ns

    def _frame(self, record: Any) -> Frame:
        return Frame(
            self.name,
            int(record["seq"]),
            int(record["t_ns"]),
            record["image"],
            bool(record["repeated"]),
            bool(record["driver_stamp"]),
        )

    def status(self) -> CameraStatus | None:
        """How it does, or None before its first picture or failure."""
        newest = self._status.latest()
        if newest is None:
            return None
        _, record = newest
        message = bytes(record["message"]).decode(errors="replace")
        return CameraStatus(bool(record["ok"]), int(record["frames"]), int(record["failures"]), message)


class CameraSet:
    """The camera process and its handles: ``start`` → ``handles[name].latest()`` … → ``stop``."""

    def __init__(self, config: CameraProcessConfig) -> None:
        self.config = config
        self.handles: dict[str, CameraHandle] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the rings and start the process; again after it died. Cameras may come up later.

        Raises CameraProcessError when it is running, RingError.
        """
        if self.alive():
            raise CameraProcessError("the camera process is running", "stop it first")
        self.config.run_dir.mkdir(parents=True, exist_ok=True)
        if not self.handles:
            for name, spec in self.config.cameras.items():
                held = max(FRAME_CAPACITY, spec.fps // 4)  # a quarter of a second of faster cameras, too
                create_ring(self.config.ring(name), frame_dtype(spec.height, spec.width), held)
                create_ring(self.config.status(name), STATUS, FRAME_CAPACITY)
                self.handles[name] = CameraHandle(name, self.config)
        path = self.config.run_dir / "cameras.config.json"
        path.write_text(self.config.model_dump_json())
        command = [sys.executable, "-m", "runtime.camera_process", "--config", str(path)]
        self._process = subprocess.Popen(
            [
                *command,
                "--parent",
                str(os.getpid()),
                "--log",
                logging.getLevelName(log.getEffectiveLevel()),
            ],
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parent.parent,
        )

    def alive(self) -> bool:
        """The process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process while it is running."""
        return self._process.pid if self._process is not None and self.alive() else None

    def stop(self, timeout_s: float = 3.0) -> None:
        """End the process; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("camera process killed: a driver did not return in %g s", timeout_s)
            process.kill()
            process.wait()
