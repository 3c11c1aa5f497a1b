"""Intel RealSense cameras through pyrealsense2's pipeline: colour, and depth aligned to it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from hal.cameras.options import CameraOptions
from hal.cameras.realsense_options import apply_options, require_known
from hal.errors import CameraError
from hal.types import Frame, Image

log = logging.getLogger(__name__)

DepthImage = npt.NDArray[np.float32]

_MAX_HOST_DELAY_NS = 1_000_000_000


def load_sdk() -> ModuleType:
    """The pyrealsense2 module. Raises CameraError when it is absent or cannot load its libraries."""
    try:
        import pyrealsense2 as rs  # on use only: its shared libraries may be missing
    except ImportError as error:
        raise CameraError(
            f"the RealSense SDK does not load ({error})", "install pyrealsense2 and libusb-1.0-0"
        ) from error
    module: ModuleType = rs
    return module


class RealSenseCamera:
    """One RealSense device, or a recording of one, through ``rs.pipeline``.

    ``serial`` chooses the device (None: the only one connected); ``playback`` is a recorded file
    used instead. With ``depth`` a depth stream of the same size is aligned to the colour picture
    and handed out by ``read_with_depth``. ``options`` set the colour sensor's light.
    """

    def __init__(
        self,
        name: str,
        width: int,
        height: int,
        fps: int = 30,
        serial: str | None = None,
        playback: Path | None = None,
        depth: bool = False,
        options: CameraOptions | None = None,
    ) -> None:
        if width <= 0 or height <= 0 or fps <= 0:
            raise CameraError(f"camera {name!r}: size and rate must be positive", "correct its configuration")
        if serial is not None and playback is not None:
            raise CameraError(f"camera {name!r} has both a serial number and a recording", "give one of them")
        self.name = name
        self.width, self.height, self.fps = width, height, fps
        self.serial, self.playback, self.depth = serial, playback, depth
        self._options = options or CameraOptions()
        require_known(name, self._options)
        self._rs: Any = None
        self._pipeline: Any = None
        self._align: Any = None
        self._depth_scale = 0.001
        self._seq = 0
        self._last: Image | None = None

    def start(self) -> None:
        """Start the pipeline. Raises CameraError: no device, wrong serial, mode not offered, in use."""
        if self._pipeline is not None:
            return
        self._rs = rs = load_sdk()
        config = rs.config()
        if self.playback is not None:
            if not self.playback.is_file():
                raise CameraError(
                    f"camera {self.name!r}: no recording {self.playback}", "check the configured path"
                )
            config.enable_device_from_file(str(self.playback), repeat_playback=False)
        else:
            config.enable_device(self._find_device())
        config.enable_stream(rs.stream.color, self.width, self.height, rs.format.rgb8, self.fps)
        if self.depth:
            config.enable_stream(rs.stream.depth, self.width, self.height, rs.format.z16, self.fps)
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(
                f"camera {self.name!r} does not start at {self.width}x{self.height}, {self.fps}/s ({error})",
                "choose a mode it offers (rs-enumerate-devices) and see that nothing else uses it",
            ) from error
        self._pipeline = pipeline
        try:
            apply_options(rs, profile.get_device(), self.name, self._options)
        except CameraError:
            self.stop()
            raise
        if self.depth:
            self._align = rs.align(rs.stream.color)
            self._depth_scale = _depth_scale(rs, profile)
        self._seq = 0
        self._last = None
        log.info("camera_open camera=%s source=%s", self.name, self.playback or self.serial or "realsense")

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next colour frame, uint8 RGB (height, width, 3). Raises CameraError when none came.

        ``seq`` is the device's frame number: a gap in it is a lost frame.
        """
        return self._read(timeout_s)[0]

    def read_with_depth(self, timeout_s: float) -> tuple[Frame, DepthImage]:
        """The next frame with depth in m, float32 (height, width), aligned to it; 0 is unknown."""
        if not self.depth:
            raise CameraError(f"camera {self.name!r} has no depth stream", "construct it with depth=True")
        frame, frames = self._read(timeout_s)
        depth = frames.get_depth_frame()
        if not depth:
            raise CameraError(f"camera {self.name!r} sent colour without depth", "read the next frame")
        return frame, np.asanyarray(depth.get_data()).astype(np.float32) * np.float32(self._depth_scale)

    def stop(self) -> None:
        """Stop the pipeline; safe to call twice."""
        if self._pipeline is not None:
            self._pipeline.stop()
            self._pipeline = None
            self._align = None

    def _find_device(self) -> str:
        """Serial number of the device to use. Asking first is quick; the pipeline waits 15 s for one."""
        devices = self._rs.context().query_devices()
        serials = [str(device.get_info(self._rs.camera_info.serial_number)) for device in devices]
        if self.serial is None and len(serials) == 1:
            return serials[0]
        if self.serial is not None and self.serial in serials:
            return self.serial
        wanted = "no RealSense device is connected" if not serials else f"connected are {', '.join(serials)}"
        if self.serial is not None:
            wanted = f"no RealSense device {self.serial}; {wanted}"
        remedy = "plug it into a USB 3 port" if not serials else "configure one of these serial numbers"
        raise CameraError(f"camera {self.name!r}: {wanted}", remedy)

    def _read(self, timeout_s: float) -> tuple[Frame, Any]:
        if self._pipeline is None:
            raise CameraError(f"camera {self.name!r} is not started", "call start() first")
        try:
            ok, frames = self._pipeline.try_wait_for_frames(max(1, round(timeout_s * 1000)))
        except RuntimeError as error:
            raise CameraError(
                f"camera {self.name!r} stopped ({error})", "stop it and start it again"
            ) from error
        if not ok:
            raise CameraError(
                f"camera {self.name!r} delivered no frame within {timeout_s:g} s",
                "check its cable; a recording may have ended",
            )
        if self._align is not None:
            frames = self._align.process(frames)
        colour = frames.get_color_frame()
        if not colour:
            raise CameraError(
                f"camera {self.name!r} sent frames without colour", "stop it and start it again"
            )
        t_ns, driver_stamp = self._capture_time(colour)
        image = np.array(
            np.asanyarray(colour.get_data()), dtype=np.uint8
        )  # a copy: the SDK reuses its buffers
        if image.shape != (self.height, self.width, 3):
            raise CameraError(
                f"camera {self.name!r} delivers {image.shape}, not {(self.height, self.width, 3)}",
                "configure the size of the recording",
            )
        seq = int(colour.get_frame_number())
        repeated = self._last is not None and (seq == self._seq or np.array_equal(image, self._last))
        self._seq, self._last = seq, image
        return Frame(self.name, seq, t_ns, image, repeated, driver_stamp), frames

    def _capture_time(self, frame: Any) -> tuple[int, bool]:
        """Monotonic time of capture, and whether it is the device's stamp (in host time) or of arrival.

        A step of the wall clock between the two looks like a stamp from elsewhere: arrival then.
        """
        now_ns = time.monotonic_ns()
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.hardware_clock:
            return now_ns, False
        age_ns = time.time_ns() - round(frame.get_timestamp() * 1e6)
        return (now_ns - age_ns, True) if 0 <= age_ns < _MAX_HOST_DELAY_NS else (now_ns, False)


def _depth_scale(rs: Any, profile: Any) -> float:
    """Metres per unit of the depth picture."""
    for sensor in profile.get_device().query_sensors():
        if sensor.supports(rs.option.depth_units):
            return float(sensor.get_option(rs.option.depth_units))
    return 0.001
