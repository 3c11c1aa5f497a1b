"""A V4L2 device's controls and stamps through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2

from hal.cameras.options import CameraOptions
from hal.errors import CameraError

# V4L2_EXPOSURE_MANUAL and V4L2_EXPOSURE_APERTURE_PRIORITY: what UVC cameras have of the four.
_MANUAL, _AUTOMATIC = 1.0, 3.0
_OLDEST_STAMP_NS = 1_000_000_000


def apply_format(capture: Any, name: str, wanted: str | None) -> None:
    """Ask for the pixels' format, before size and rate. Raises CameraError when the device keeps another."""
    fourcc = wanted or "MJPG"
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    has = "".join(chr(code >> shift & 0x7F) for shift in (0, 8, 16, 24))
    if wanted is not None and has != wanted:
        raise CameraError(
            f"camera {name!r} delivers {has.strip() or 'its own format'}, not {wanted}",
            "leave out format, or choose one it has at this size (v4l2-ctl --list-formats-ext)",
        )


def apply_options(capture: Any, name: str, options: CameraOptions) -> None:
    """Set the controls that are asked for and read each back. Raises CameraError naming the first refused."""
    for option, key, value in _controls(options):
        accepted = capture.set(key, value)
        has = float(capture.get(key))
        if not accepted or abs(has - value) > max(0.5, 0.01 * abs(value)):
            what = "does not have this control" if not accepted else f"keeps {has:g}"
            raise CameraError(
                f"camera {name!r} refuses {option} = {_spoken(getattr(options, option))}: it {what}",
                "correct its configuration (v4l2-ctl -l shows its controls and their ranges)",
            )


def _controls(options: CameraOptions) -> Iterator[tuple[str, int, float]]:
    """(option, OpenCV property, value) in the order in which a device wants them."""
    if options.exposure is not None:
        yield "exposure", cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL
        yield "exposure", cv2.CAP_PROP_EXPOSURE, options.exposure
    elif options.auto_exposure is not None:
        yield "auto_exposure", cv2.CAP_PROP_AUTO_EXPOSURE, _AUTOMATIC if options.auto_exposure else _MANUAL
    if options.gain is not None:
        yield "gain", cv2.CAP_PROP_GAIN, options.gain
    if options.white_balance is not None:
        yield "white_balance", cv2.CAP_PROP_AUTO_WB, 0.0
        yield "white_balance", cv2.CAP_PROP_WB_TEMPERATURE, options.white_balance
    if options.focus is not None:
        yield "focus", cv2.CAP_PROP_AUTOFOCUS, 0.0
        yield "focus", cv2.CAP_PROP_FOCUS, options.focus
    elif options.autofocus is not None:
        yield "autofocus", cv2.CAP_PROP_AUTOFOCUS, float(options.autofocus)


def _spoken(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def driver_stamp_ns(capture: Any, now_ns: int) -> int | None:
    """When the driver got the frame that was grabbed last, monotonic ns; None when it does not say.

    V4L2 drivers stamp their buffers on CLOCK_MONOTONIC, and OpenCV hands that out as the position. A
    stamp of another clock, or of none, is not within the last second.
    """
    stamp_ns = round(float(capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e6)
    return stamp_ns if 0 <= now_ns - stamp_ns <= _OLDEST_STAMP_NS else None
