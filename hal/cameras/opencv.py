"""Cameras that OpenCV can open: a V4L2 device, a video file, an MJPEG or RTSP address."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hal.cameras.jpeg import decode_whole
from hal.cameras.options import CameraOptions
from hal.cameras.v4l2 import apply_format, apply_options, driver_stamp_ns
from hal.errors import CameraError
from hal.types import Frame, Image

log = logging.getLogger(__name__)

_WARM_UP_FRAMES = 30
_OPEN_TIMEOUT_S = 5.0
_URL_MARK = "://"


class OpenCVCamera:
    """One ``cv2.VideoCapture``. ``read`` blocks; call it from a thread of its own.

    ``source`` is a device index, a device path, a video file or an URL. ``width``, ``height`` and
    ``fps`` are what it must deliver: a device that settles on something else is refused rather than
    silently resized, and so is one that does not do what ``options`` ask. ``timeout_s`` bounds every wait on
    an URL inside FFmpeg.
    """

    def __init__(
        self,
        name: str,
        source: int | str,
        width: int,
        height: int,
        fps: int = 30,
        timeout_s: float = 1.0,
        options: CameraOptions | None = None,
    ) -> None:
        if width <= 0 or height <= 0 or fps <= 0 or timeout_s <= 0:
            raise CameraError(
                f"camera {name!r}: size, rate and timeout must be positive", "correct its configuration"
            )
        self.name = name
        self.source = source
        self.width, self.height, self.fps = width, height, fps
        self._timeout_s = timeout_s
        self._capture: Any = None
        self._seq = 0
        self._last: Image | None = None
        self._last_read_ns = 0
        self._grabbed_ns = 0
        self._driver_stamp = False
        self._packets = False
        self._options = options or CameraOptions()
        if self._options.asked() and not self._is_device:
            raise CameraError(
                f"camera {name!r} cannot be given {', '.join(self._options.asked())}: it is no device",
                "take that out of its configuration, and set it where the pictures are made",
            )

    @property
    def _is_url(self) -> bool:
        return isinstance(self.source, str) and _URL_MARK in self.source

    @property
    def _is_device(self) -> bool:
        return isinstance(self.source, int) or self.source.startswith("/dev/")

    def start(self) -> None:
        """Open the source and check what it delivers. Raises CameraError with the remedy."""
        if self._capture is not None:
            return
        capture = self._open()
        if not capture.isOpened():
            capture.release()
            raise CameraError(f"camera {self.name!r} cannot open {self.source!r}", self._remedy())
        self._capture = capture
        try:
            if self._is_device:
                self._negotiate()
            self._packets = self._is_url and self._ask_for_packets()
            image = self._freshest() if self._is_url else self._next(0)
            self._check_size(image)
        except CameraError:
            self.stop()
            raise
        if not self._is_url and not self._is_device:
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        self._seq = 0
        self._last = None
        self._last_read_ns = time.monotonic_ns()
        log.info(
            "camera_open camera=%s source=%s size=%dx%d", self.name, self.source, self.width, self.height
        )

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next frame: uint8 RGB (height, width, 3).

        A device's frame carries its driver's stamp, where that is sane; any other the time at which it
        arrived (FFmpeg keeps the headers of an MJPEG server's pictures to itself).
        ``seq`` also counts frames that were skipped because nobody read for a while, or because an MJPEG
        server's picture came torn (what a device's driver or FFmpeg decodes cannot be told from a whole one
        here). ``repeated`` is set when the picture is the last one again, bit by bit: sensor noise forbids
        that of a live camera. Raises CameraError when none came within ``timeout_s`` (on an URL: within the
        constructor's), when all that came were torn, or when it has another size.
        """
        if self._capture is None:
            raise CameraError(f"camera {self.name!r} is not started", "call start() first")
        begun_ns = time.monotonic_ns()
        self._seq += self._skip_stale(begun_ns)
        self._wait(timeout_s)
        image = self._next(begun_ns + round(max(timeout_s, self._timeout_s) * 1e9))
        self._check_size(image)
        self._last_read_ns = time.monotonic_ns()
        late_s = (self._grabbed_ns - begun_ns) * 1e-9
        if late_s > max(timeout_s, self._timeout_s):
            raise CameraError(
                f"camera {self.name!r} took {late_s:.2f} s for a frame", "check its cable and load"
            )
        repeated = self._last is not None and np.array_equal(image, self._last)
        self._last = image
        self._seq += 1
        return Frame(self.name, self._seq, self._grabbed_ns, image, repeated, self._driver_stamp)

    def stop(self) -> None:
        """Close the source; safe to call twice."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    # --- opening ------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._is_device:
            return cv2.VideoCapture(self.source, cv2.CAP_V4L2)
        # One decoding thread: with more, FFmpeg holds back a picture per thread.
        options = [cv2.CAP_PROP_N_THREADS, 1]
        if self._is_url:
            options += [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(_OPEN_TIMEOUT_S * 1000)]
            options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(self._timeout_s * 1000)]
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, options)

    def _negotiate(self) -> None:
        """Ask a device for format, size, rate, the shortest queue and the options."""
        apply_format(self._capture, self.name, self._options.format)
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, self.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, self.height),
            (cv2.CAP_PROP_FPS, self.fps),
            (cv2.CAP_PROP_BUFFERSIZE, 1),
        ):
            self._capture.set(key, value)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        if rate and abs(rate - self.fps) > 0.5:
            raise CameraError(
                f"camera {self.name!r} settles on {rate:g} frames/s, not {self.fps}",
                "choose a rate it has (v4l2-ctl --list-formats-ext)",
            )
        apply_options(self._capture, self.name, self._options)

    def _remedy(self) -> str:
        if self._is_device:
            return "check that it is plugged in and not in use (v4l2-ctl --list-devices, fuser /dev/video*)"
        if self._is_url:
            return "check that its server runs and answers at that address"
        missing = isinstance(self.source, str) and not Path(self.source).exists()
        return "there is no such file" if missing else "check that it is a video OpenCV can decode"

    # --- reading ------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> None:
        """Let a device's own wait be no longer than ``timeout_s`` (OpenCV's is ten seconds)."""
        if not self._is_device:
            return
        try:
            ready, _ = cv2.VideoCapture.waitAny([self._capture], round(timeout_s * 1e9))
        except cv2.error as error:
            raise self._silent() from error
        if not ready:
            raise self._silent()

    def _grab_or_fail(self) -> Callable[[], tuple[bool, Any]]:
        if not self._capture.grab():
            raise self._silent()
        now_ns = time.monotonic_ns()
        stamp_ns = driver_stamp_ns(self._capture, now_ns) if self._is_device else None
        self._driver_stamp = stamp_ns is not None
        self._grabbed_ns = now_ns if stamp_ns is None else stamp_ns
        retrieve: Callable[[], tuple[bool, Any]] = self._capture.retrieve
        return retrieve

    def _ask_for_packets(self) -> bool:
        """Have an MJPEG stream's pictures as they are sent, so that a torn one is seen; whether we do."""
        if int(self._capture.get(cv2.CAP_PROP_FOURCC)) != cv2.VideoWriter.fourcc(*"MJPG"):
            return False
        return bool(self._capture.set(cv2.CAP_PROP_FORMAT, -1))

    def _next(self, until_ns: int) -> Image:
        """The next picture that is whole; the last torn one may come at ``until_ns``."""
        while True:
            image = self._decode(self._grab_or_fail())
            if image is not None:
                return image
            self._seq += 1
            if time.monotonic_ns() > until_ns:
                raise self._torn()

    def _decode(self, retrieve: Callable[[], tuple[bool, Any]]) -> Image | None:
        """The picture that was grabbed; None when it is torn."""
        ok, data = retrieve()
        if not ok or data is None:
            raise self._silent()
        if self._packets:
            return decode_whole(data.ravel())
        image: Image = cv2.cvtColor(data, cv2.COLOR_BGR2RGB)
        return image

    def _freshest(self) -> Image:
        """Run through what FFmpeg queued while it examined the stream, up to the live picture."""
        period_ns = 1e9 / self.fps
        image: Image | None = None
        for _ in range(_WARM_UP_FRAMES):
            begun_ns = time.monotonic_ns()
            image = self._decode(self._grab_or_fail())
            if image is not None and self._grabbed_ns - begun_ns > 0.3 * period_ns:
                return image
        if image is None:
            raise self._torn()
        return image

    def _skip_stale(self, now_ns: int) -> int:
        """Drop what an URL queued while nobody read, so that the next frame is a fresh one."""
        if not self._is_url:
            return 0
        stale = int((now_ns - self._last_read_ns) * 1e-9 * self.fps) - 1
        skipped = 0
        while skipped < stale and self._capture.grab():
            skipped += 1
        return skipped

    def _check_size(self, image: Image) -> None:
        height, width = image.shape[:2]
        if (width, height) != (self.width, self.height):
            raise CameraError(
                f"camera {self.name!r} delivers {width}x{height}, not {self.width}x{self.height}",
                f"configure {width}x{height}, or set the source to the size wanted",
            )

    def _torn(self) -> CameraError:
        what = f"camera {self.name!r} delivers only torn pictures from {self.source!r}"
        return CameraError(what, "check its cable, its hub and what else is on that bus")

    def _silent(self) -> CameraError:
        what = f"camera {self.name!r} delivers no frames from {self.source!r}"
        if not self._is_url and not self._is_device:
            return CameraError(f"camera {self.name!r}: {self.source!r} has no more frames", "start it again")
        return CameraError(what, "stop it and start it again; check its cable, power and server")
