"""The RealSense camera through the SDK's real pipeline, from recordings made with its software device."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hal.cameras.options import CameraOptions
from hal.cameras.realsense import RealSenseCamera, load_sdk
from hal.errors import CameraError
from hal.types import Camera

WIDTH, HEIGHT, FPS = 96, 64, 30
FRAMES = 12
FOCAL = 90.0

try:
    rs: Any = load_sdk()
except CameraError as error:
    pytest.skip(str(error), allow_module_level=True)


def _stream(kind: Any, fmt: Any, uid: int, bpp: int) -> Any:
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = WIDTH, HEIGHT
    intrinsics.ppx, intrinsics.ppy, intrinsics.fx, intrinsics.fy = WIDTH / 2, HEIGHT / 2, FOCAL, FOCAL
    intrinsics.model, intrinsics.coeffs = rs.distortion.none, [0.0] * 5
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid = kind, 0, uid
    stream.width, stream.height, stream.fps, stream.bpp, stream.fmt = WIDTH, HEIGHT, FPS, bpp, fmt
    stream.intrinsics = intrinsics
    return stream


def _send(sensor: Any, profile: Any, pixels: np.ndarray, bpp: int, number: int) -> None:
    frame = rs.software_video_frame()
    frame.pixels, frame.stride, frame.bpp = pixels, WIDTH * bpp, bpp
    frame.timestamp, frame.domain = 1000.0 + number * 1000 / FPS, rs.timestamp_domain.hardware_clock
    frame.frame_number, frame.profile = number, profile.as_video_stream_profile()
    sensor.on_video_frame(frame)


def record(path: Path, depth_mm: np.ndarray, baseline_m: float = 0.0, frames: int = FRAMES) -> Path:
    """A clip: the red channel rises by 10 each picture; the depth camera ``baseline_m`` left of the other."""
    device = rs.software_device()
    colour_sensor, depth_sensor = device.add_sensor("Color"), device.add_sensor("Stereo")
    colour = colour_sensor.add_video_stream(_stream(rs.stream.color, rs.format.rgb8, 1, 3))
    depth = depth_sensor.add_video_stream(_stream(rs.stream.depth, rs.format.z16, 2, 2))
    depth_sensor.add_read_only_option(rs.option.depth_units, 0.001)
    same = rs.extrinsics()
    same.rotation, same.translation = [1.0, 0, 0, 0, 1, 0, 0, 0, 1], [baseline_m, 0.0, 0.0]
    back = rs.extrinsics()
    back.rotation, back.translation = same.rotation, [-baseline_m, 0.0, 0.0]
    depth.register_extrinsics_to(colour, same)
    colour.register_extrinsics_to(depth, back)
    recorder = rs.recorder(str(path), device)
    sensors = recorder.query_sensors()
    for sensor in sensors:
        sensor.open(sensor.get_stream_profiles()[0])
        sensor.start(lambda _: None)
    for number in range(1, frames + 1):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[..., 0] = 10 * number
        _send(depth_sensor, depth, depth_mm, 2, number)
        _send(colour_sensor, colour, image, 3, number)
        time.sleep(1 / FPS)
    for sensor in sensors:
        sensor.stop()
        sensor.close()
    recorder.pause()
    del sensors, sensor, recorder
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FRAMES pictures with a flat depth of 0.5 m."""
    path = tmp_path_factory.mktemp("realsense") / "clip.db3"
    return record(path, np.full((HEIGHT, WIDTH), 500, np.uint16))


def test_a_recording_plays_through_the_pipeline(recording: Path) -> None:
    camera = RealSenseCamera("front", WIDTH, HEIGHT, FPS, playback=recording)
    assert isinstance(camera, Camera)
    camera.start()
    frames = [camera.read(2.0) for _ in range(FRAMES - 2)]
    for earlier, later in pairwise(frames):
        assert later.seq > earlier.seq
        assert later.t_ns > earlier.t_ns
        assert not later.repeated
    for frame in frames:
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert int(frame.image[0, 0, 0]) == 10 * frame.seq
        assert not frame.image[..., 1:].any()
    with pytest.raises(CameraError, match=r"no frame within|stopped"):
        for _ in range(5):
            camera.read(0.5)
    camera.stop()
    camera.stop()


def test_depth_comes_aligned_and_in_metres(recording: Path) -> None:
    camera = RealSenseCamera("front", WIDTH, HEIGHT, FPS, playback=recording, depth=True)
    camera.start()
    frame, depth = camera.read_with_depth(2.0)
    camera.stop()
    assert depth.shape == frame.image.shape[:2]
    assert depth.dtype == np.float32
    assert np.median(depth) == pytest.approx(0.5)


def test_depth_lands_on_the_pixel_that_sees_the_same_point(tmp_path: Path) -> None:
    """u' = u + f·b/z: a wall at 1 m and a box at 0.25 m before it move by different numbers of pixels."""
    near, wall, baseline = 0.25, 1.0, 0.05
    depth_mm = np.full((HEIGHT, WIDTH), round(wall * 1000), np.uint16)
    depth_mm[20:40, 30:50] = round(near * 1000)
    path = record(tmp_path / "clip.db3", depth_mm, baseline, frames=6)
    camera = RealSenseCamera("front", WIDTH, HEIGHT, FPS, playback=path, depth=True)
    camera.start()
    _, depth = camera.read_with_depth(2.0)
    camera.stop()
    box = np.argwhere(np.abs(depth - near) < 0.01)
    shift = FOCAL * baseline / near
    assert shift == 18.0
    np.testing.assert_allclose((box[:, 1].min(), box[:, 1].max()), (30 + shift, 49 + shift), atol=1.0)
    np.testing.assert_allclose((box[:, 0].min(), box[:, 0].max()), (20, 39), atol=1.0)
    assert depth[30, 49 + int(shift) + 4] == pytest.approx(wall, abs=0.01)
    assert depth[30, 40] == 0.0, "what the box hides from the depth camera is unknown"
    assert depth[10, 2] == 0.0, "and so is what lies outside its picture"


def test_without_a_device_the_error_says_so_at_once() -> None:
    if len(rs.context().query_devices()):
        pytest.skip("a RealSense device is connected")
    begun = time.monotonic()
    with pytest.raises(CameraError, match=r"no RealSense device is connected.*USB 3"):
        RealSenseCamera("front", WIDTH, HEIGHT).start()
    with pytest.raises(CameraError, match="no RealSense device 1234"):
        RealSenseCamera("front", WIDTH, HEIGHT, serial="1234").start()
    assert time.monotonic() - begun < 5.0


def test_a_recording_has_no_light_to_set(recording: Path) -> None:
    options = CameraOptions(exposure=100)
    camera = RealSenseCamera("front", WIDTH, HEIGHT, FPS, playback=recording, options=options)
    with pytest.raises(CameraError, match=r"has no exposure to set.*recording"):
        camera.start()
    camera.stop()


def test_a_recording_in_another_size_is_refused(recording: Path) -> None:
    with pytest.raises(CameraError, match="does not start at 640x480"):
        RealSenseCamera("front", 640, 480, FPS, playback=recording).start()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no recording"):
        RealSenseCamera("front", WIDTH, HEIGHT, playback=tmp_path / "none.db3").start()
    with pytest.raises(CameraError, match="both"):
        RealSenseCamera("front", WIDTH, HEIGHT, serial="1", playback=tmp_path)
    with pytest.raises(CameraError, match="not started"):
        RealSenseCamera("front", WIDTH, HEIGHT).read(0.1)
    with pytest.raises(CameraError, match="no depth"):
        RealSenseCamera("front", WIDTH, HEIGHT).read_with_depth(0.1)
