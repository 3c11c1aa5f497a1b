"""Do the cameras deliver what was configured: size, rate, light, and whose stamps they carry."""

from __future__ import annotations

import time

from hal.errors import HalError
from hal.types import Camera, Frame
from runtime.camera_process import CameraSpec, open_driver
from tools.checking import Finding, failed, ok, problem, warning

_FIRST_PICTURE_S = 10.0
_WATCH_S = 1.0
_SLOW = 0.8  # of the configured rate
_DARK, _BRIGHT = 12.0, 243.0  # mean of 8-bit pixels


def camera_finding(name: str, spec: CameraSpec) -> Finding:
    """Open one camera, watch it for a second, close it."""
    what = f"camera {name}"
    camera = None
    try:
        camera = open_driver(name, spec)
        camera.start()
        first = camera.read(_FIRST_PICTURE_S)
        frames, seconds = _watch(camera)
    except HalError as error:
        return failed(what, error)
    finally:
        if camera is not None:
            camera.stop()
    return _judge(what, spec, first, frames, seconds)


def _watch(camera: Camera) -> tuple[list[Frame], float]:
    """What it delivers, and in what time. Raises CameraError when it stops."""
    began = time.monotonic()
    frames: list[Frame] = []
    while (seconds := time.monotonic() - began) < _WATCH_S:
        frames.append(camera.read(_FIRST_PICTURE_S))
    return frames, seconds


def _judge(what: str, spec: CameraSpec, first: Frame, frames: list[Frame], seconds: float) -> Finding:
    height, width = first.image.shape[:2]
    if (height, width) != (spec.height, spec.width):
        return problem(
            what, f"delivers {width}x{height}, not {spec.width}x{spec.height}", "set its size to that"
        )
    repeated = sum(frame.repeated for frame in frames)
    rate = (len(frames) - repeated) / seconds
    stamp = "driver" if all(frame.driver_stamp for frame in frames) else "arrival"
    detail = f"{width}x{height}, {rate:.0f} pictures/s, stamped by {stamp}"
    light = f", exposure {spec.exposure:g}" if spec.exposure is not None else ""
    mean = float(first.image.mean())
    if int(first.image.max()) - int(first.image.min()) < 8:
        return warning(
            what, f"{detail}: its picture is of one colour", "is its lens covered, or the light off?"
        )
    if frames and repeated > len(frames) // 2:
        return warning(what, f"{detail}: it shows the same picture again and again", "plug it in again")
    if rate < _SLOW * spec.fps:
        return warning(
            what,
            f"{detail}, not {spec.fps}",
            "more light, a fixed exposure, format MJPG, or a USB port of its own; or set fps to that",
        )
    if not _DARK < mean < _BRIGHT:
        return warning(
            what, f"{detail}{light}: mean brightness {mean:.0f} of 255", "correct light or exposure"
        )
    return ok(what, f"{detail}{light}, mean brightness {mean:.0f}")
