"""What a device is asked to do with light, focus and format, and whose stamps its frames carry.

No V4L2 device is at hand in tests: a capture that behaves as OpenCV's V4L2 one does stands in for it.
"""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from hal.cameras.opencv import OpenCVCamera
from hal.cameras.options import CameraOptions
from hal.cameras.realsense import RealSenseCamera
from hal.errors import CameraError
from runtime.camera_process import CameraSpec, open_driver

WIDTH, HEIGHT = 64, 48
YUYV = cv2.VideoWriter.fourcc(*"YUYV")


class FakeV4L2:
    """Keeps what it is set to, within its ranges; controls it lacks are refused."""

    def __init__(self, stamp_age_s: float | None = 0.004) -> None:
        self.values: dict[int, float] = {
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_AUTO_EXPOSURE: 3.0,
            cv2.CAP_PROP_EXPOSURE: 250.0,
            cv2.CAP_PROP_GAIN: 10.0,
            cv2.CAP_PROP_FOURCC: float(YUYV),
        }
        self.maximum = {cv2.CAP_PROP_EXPOSURE: 5000.0}
        self.formats = (YUYV, cv2.VideoWriter.fourcc(*"MJPG"))
        self.order: list[int] = []
        self.stamp_age_s = stamp_age_s
        self.frames = 0

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def set(self, key: int, value: float) -> bool:
        self.order.append(key)
        if key == cv2.CAP_PROP_FOURCC and value not in self.formats:
            return True  # OpenCV says so, and the device keeps its format
        if key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_BUFFERSIZE):
            return True
        if key not in self.values:
            return False
        self.values[key] = min(value, self.maximum.get(key, value))
        return True

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return 0.0 if self.stamp_age_s is None else (time.monotonic() - self.stamp_age_s) * 1e3
        return self.values.get(key, -1.0)

    def grab(self) -> bool:
        self.frames += 1
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((HEIGHT, WIDTH, 3), self.frames, np.uint8)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> FakeV4L2:
    fake = FakeV4L2()
    monkeypatch.setattr(OpenCVCamera, "_open", lambda _: fake)
    monkeypatch.setattr(OpenCVCamera, "_wait", lambda *_: None)
    return fake


def camera(**options: object) -> OpenCVCamera:
    return OpenCVCamera("wrist", 2, WIDTH, HEIGHT, options=CameraOptions.model_validate(options))


def test_controls_are_set_in_the_order_a_device_wants(capture: FakeV4L2) -> None:
    camera(exposure=120, gain=30, format="YUYV").start()
    assert capture.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 1.0, "manual"
    assert capture.values[cv2.CAP_PROP_EXPOSURE] == 120.0
    assert capture.values[cv2.CAP_PROP_GAIN] == 30.0
    assert capture.values[cv2.CAP_PROP_FOURCC] == YUYV
    order = capture.order
    assert order.index(cv2.CAP_PROP_FOURCC) < order.index(cv2.CAP_PROP_FRAME_WIDTH)
    assert order.index(cv2.CAP_PROP_AUTO_EXPOSURE) < order.index(cv2.CAP_PROP_EXPOSURE)


def test_what_is_not_asked_for_is_left_alone(capture: FakeV4L2) -> None:
    camera().start()
    assert capture.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 3.0
    assert cv2.CAP_PROP_GAIN not in capture.order
    assert capture.values[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG"), "the usual wish"


def test_a_device_that_does_otherwise_is_refused(capture: FakeV4L2) -> None:
    with pytest.raises(CameraError, match=r"wrist.*exposure = 9000: it keeps 5000.*v4l2-ctl -l"):
        camera(exposure=9000).start()
    with pytest.raises(CameraError, match=r"focus = 30: it does not have this control"):
        camera(focus=30).start()
    capture.formats, capture.values[cv2.CAP_PROP_FOURCC] = (YUYV,), YUYV
    with pytest.raises(CameraError, match=r"delivers YUYV, not MJPG"):
        camera(format="MJPG").start()
    camera().start()  # nobody insisted


def test_the_drivers_stamp_is_used_where_it_is_sane(capture: FakeV4L2) -> None:
    device = camera()
    device.start()
    before_ns = time.monotonic_ns()
    frame = device.read(1.0)
    assert frame.driver_stamp
    assert -0.001 < (before_ns - frame.t_ns) / 1e9 < 0.0041
    for age_s in (None, -5.0, 30.0):  # none, of the future, of another clock
        capture.stamp_age_s = age_s
        frame = device.read(1.0)
        assert not frame.driver_stamp
        assert frame.t_ns >= before_ns


def test_options_belong_to_devices(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=r"cannot be given exposure: it is no device"):
        OpenCVCamera("front", "http://127.0.0.1:1/x", WIDTH, HEIGHT, options=CameraOptions(exposure=5))
    with pytest.raises(CameraError, match=r"cannot be given focus: it is a RealSense"):
        RealSenseCamera("front", WIDTH, HEIGHT, options=CameraOptions(focus=5, gain=3))


def test_a_configuration_carries_them_to_the_driver() -> None:
    spec = CameraSpec.model_validate({"source": "3", "exposure": 80, "format": "YUYV"})
    driver = open_driver("front", spec)
    assert isinstance(driver, OpenCVCamera)
    assert driver._options.asked() == {"exposure": 80.0, "format": "YUYV"}
    with pytest.raises(ValidationError):
        CameraSpec.model_validate({"source": "3", "exposure": -1})
    with pytest.raises(ValidationError):
        CameraSpec.model_validate({"source": "3", "brightness": 1})
