"""The process that runs the camera drivers: one thread each, frames into shared-memory rings.

A camera that fails is reported, closed and tried again, without holding up the others or anyone who
reads: the newest picture simply grows old. Started by ``CameraSet`` as ``python -m
runtime.camera_process --config FILE --parent PID``; it ends with its parent.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hal.cameras.options import CameraOptions
from hal.errors import CameraError
from hal.types import Camera, Frame
from runtime.errors import RingError
from runtime.ring import RingWriter, frame_dtype
from runtime.streams import NS

log = logging.getLogger(__name__)

EXIT_CONFIG = 2
FRAME_CAPACITY = 8  # a quarter of a second at 30 Hz: a reader copies in well under one period
MESSAGE_BYTES = 200
STATUS = np.dtype(
    [("ok", "?"), ("t_ns", "<i8"), ("frames", "<i8"), ("failures", "<i8"), ("message", f"S{MESSAGE_BYTES}")]
)

_PARENT_POLL_S = 0.1

CameraName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class CameraSpec(CameraOptions):
    """One camera: an OpenCV device index, path or URL; or a RealSense serial number or recording."""

    kind: Literal["opencv", "realsense"] = "opencv"
    source: str = Field(min_length=1)
    width: int = Field(default=640, ge=16, le=4096)
    height: int = Field(default=480, ge=16, le=4096)
    fps: int = Field(default=30, ge=1, le=240)


class CameraProcessConfig(BaseModel):
    """The cameras of one robot and where their rings lie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cameras: dict[CameraName, CameraSpec] = Field(min_length=1, max_length=8)
    run_dir: Path
    timeout_s: float = Field(
        default=1.0, gt=0.0, le=30.0, description="a camera silent for longer is reopened"
    )
    retry_s: float = Field(default=1.0, gt=0.0, le=60.0)
    frozen_s: float = Field(
        default=1.0, gt=0.0, le=30.0, description="a picture that does not change for longer is withheld"
    )

    def ring(self, name: str) -> Path:
        """Path of a camera's frames."""
        return self.run_dir / f"camera.{name}.frames"

    def status(self, name: str) -> Path:
        """Path of a camera's status."""
        return self.run_dir / f"camera.{name}.status"


class CameraWorker:
    """Keeps one camera running and its ring fed, until ``stop`` is set."""

    def __init__(
        self,
        name: str,
        spec: CameraSpec,
        config: CameraProcessConfig,
        driver: Callable[[str, CameraSpec], Camera],
        stop: threading.Event,
    ) -> None:
        self._name, self._spec, self._config = name, spec, config
        self._driver = driver
        self._stop = stop
        self._frames = RingWriter(config.ring(name), frame_dtype(spec.height, spec.width))
        self._status = RingWriter(config.status(name), STATUS)
        self._changed_ns = 0

    def run(self) -> None:
        """Open, read until it fails, report, wait, open again."""
        while not self._stop.is_set():
            camera = None
            try:
                camera = self._driver(self._name, self._spec)
                camera.start()
                log.info("camera open name=%s", self._name)
                self._read_frames(camera)
            except CameraError as error:
                self._failed(error)
            finally:
                if camera is not None:
                    camera.stop()
            self._stop.wait(self._config.retry_s)

    def _read_frames(self, camera: Camera) -> None:
        while not self._stop.is_set():
            self._publish(camera.read(self._config.timeout_s))

    def _publish(self, frame: Frame) -> None:
        wanted = (self._spec.height, self._spec.width, 3)
        if frame.image.shape != wanted:
            raise CameraError(
                f"camera {self._name} delivers {frame.image.shape}, not {wanted}",
                "set its width and height to what it can do",
            )
        if not frame.repeated:
            self._changed_ns = frame.t_ns
        elif frame.t_ns - self._changed_ns > self._config.frozen_s * NS:
            self._frozen()
            return
        record = self._frames.record
        record["seq"], record["t_ns"], record["repeated"] = frame.seq, frame.t_ns, frame.repeated
        record["driver_stamp"], record["image"] = frame.driver_stamp, frame.image
        self._frames.push()
        self._status.record["frames"] += 1
        self._report(ok=True, message="")

    def _frozen(self) -> None:
        """Withhold a picture that stands still, so that it grows old and no policy drives by it."""
        if bool(self._status.record["ok"]):
            message = f"camera {self._name} shows the same picture again and again; plug it in again"
            log.error("camera frozen name=%s", self._name)
            self._status.record["failures"] += 1
            self._report(ok=False, message=message)

    def _failed(self, error: CameraError) -> None:
        if bool(self._status.record["ok"]) or int(self._status.record["failures"]) == 0:
            log.error("camera failed name=%s %s", self._name, error)
        self._status.record["failures"] += 1
        self._report(ok=False, message=str(error))

    def _report(self, *, ok: bool, message: str) -> None:
        record = self._status.record
        record["ok"], record["t_ns"] = ok, time.monotonic_ns()
        record["message"] = message.encode()[:MESSAGE_BYTES]
        self._status.push()


def open_driver(name: str, spec: CameraSpec) -> Camera:
    """The driver of a camera. Raises CameraError when its library is missing."""
    if spec.kind == "realsense":
        from hal.cameras.realsense import RealSenseCamera

        recording = Path(spec.source)
        if recording.is_file():
            return RealSenseCamera(name, spec.width, spec.height, spec.fps, playback=recording, options=spec)
        return RealSenseCamera(name, spec.width, spec.height, spec.fps, serial=spec.source, options=spec)
    from hal.cameras.opencv import OpenCVCamera

    source = int(spec.source) if spec.source.isdecimal() else spec.source
    return OpenCVCamera(name, source, spec.width, spec.height, spec.fps, options=spec)


def run(config: CameraProcessConfig, parent: int) -> None:
    """Run every camera until the parent goes. Raises RingError."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's to judge
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    workers = [CameraWorker(name, spec, config, open_driver, stop) for name, spec in config.cameras.items()]
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    # A worker that dies of something it did not expect takes the process with it, where it is noticed.
    while os.getppid() == parent and all(thread.is_alive() for thread in threads):
        if stop.wait(_PARENT_POLL_S):
            break
    stop.set()
    for thread in threads:
        thread.join(2 * config.timeout_s)


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process; the exit status is 0, or 2 when it cannot begin."""
    parser = argparse.ArgumentParser(prog="runtime.camera_process", description="run the cameras of a robot")
    parser.add_argument("--config", type=Path, required=True, help="CameraProcessConfig as JSON")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--log", default="INFO", help="level of what is logged")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=options.log, format="%(levelname)s %(name)s %(message)s")
    try:
        run(CameraProcessConfig.model_validate_json(options.config.read_text()), options.parent)
    except (OSError, ValidationError, RingError) as error:
        log.error("camera process cannot begin: %s", error)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
