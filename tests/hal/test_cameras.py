"""The OpenCV camera against a real MJPEG server and real video files."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hal.bench.mjpeg import Feed, MjpegServer
from hal.cameras.jpeg import decode_whole
from hal.cameras.opencv import OpenCVCamera
from hal.errors import CameraError
from hal.types import Camera

WIDTH, HEIGHT, FPS = 64, 48, 30


def picture(level: int) -> np.ndarray:
    """A flat picture: red at ``level``, green at half of it."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0], image[..., 1] = level, level // 2
    return image


class Studio:
    """A server whose only camera shows a brighter red every frame (wrapping at 200)."""

    def __init__(self) -> None:
        self.feed = Feed("front")
        self.server = MjpegServer([self.feed])
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def _play(self) -> None:
        while not self._stop.wait(1 / FPS):
            self.count += 1
            self.feed.publish(picture((self.count % 50) * 4), time.monotonic_ns())

    def __enter__(self) -> "Studio":
        self.server.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.server.stop()
        self._thread.join()

    def behind(self, image: np.ndarray) -> int:
        """How many frames old a picture is."""
        shown = round((float(image[..., 0].mean()) - 1.5) / 4)
        return (self.count - shown) % 50


@pytest.fixture
def studio() -> Iterator[Studio]:
    with Studio() as studio:
        yield studio


@pytest.fixture
def camera(studio: Studio) -> Iterator[OpenCVCamera]:
    camera = OpenCVCamera("front", studio.server.urls["front"], WIDTH, HEIGHT, FPS, timeout_s=0.4)
    yield camera
    camera.stop()


def test_frames_are_rgb_numbered_stamped_and_fresh(studio: Studio, camera: OpenCVCamera) -> None:
    assert isinstance(camera, Camera)
    camera.start()
    ages = []
    brightest = np.zeros(3)
    last = camera.read(1.0)
    for _ in range(15):
        frame = camera.read(1.0)
        ages.append(studio.behind(frame.image))
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        assert frame.seq == last.seq + 1
        assert frame.t_ns > last.t_ns
        assert not frame.repeated
        last = frame
        colour = frame.image.reshape(-1, 3).mean(axis=0)
        brightest = max(brightest, colour, key=lambda rgb: rgb[0])
    red, green, blue = brightest
    assert red > 1.5 * green > 1.5 * blue
    assert np.median(ages) <= 1


def test_a_slow_reader_still_gets_the_newest_picture(studio: Studio, camera: OpenCVCamera) -> None:
    camera.start()
    before = camera.read(1.0)
    time.sleep(0.5)
    frame = camera.read(1.0)
    assert studio.behind(frame.image) <= 3
    assert frame.seq - before.seq > 8


def test_a_frozen_camera_repeats_itself_and_is_caught(studio: Studio, camera: OpenCVCamera) -> None:
    camera.start()
    camera.read(1.0)
    studio.feed.mode = "freeze"
    repeated = [camera.read(1.0).repeated for _ in range(6)]
    assert repeated[-3:] == [True, True, True]
    studio.feed.mode = "ok"
    repeated = [camera.read(1.0).repeated for _ in range(6)]
    assert repeated[-3:] == [False, False, False]


def test_a_stalled_camera_is_an_error_and_comes_back_after_a_restart(
    studio: Studio, camera: OpenCVCamera
) -> None:
    camera.start()
    camera.read(1.0)
    studio.feed.mode = "stall"
    begun = time.monotonic()
    with pytest.raises(CameraError, match=r"front.*no frames.*start it again"):
        for _ in range(5):
            camera.read(0.4)
    assert time.monotonic() - begun < 5.0
    camera.stop()
    studio.feed.mode = "ok"
    camera.start()
    assert camera.read(1.0).image.shape == (HEIGHT, WIDTH, 3)


def test_a_camera_that_is_gone_cannot_be_opened(studio: Studio, camera: OpenCVCamera) -> None:
    camera.start()
    camera.read(1.0)
    studio.feed.mode = "gone"
    with pytest.raises(CameraError, match="no frames"):
        for _ in range(40):
            camera.read(1.0)
    camera.stop()
    with pytest.raises(CameraError, match=r"cannot open.*server runs"):
        camera.start()


def test_another_size_is_refused_not_resized(studio: Studio) -> None:
    camera = OpenCVCamera("front", studio.server.urls["front"], 640, 480, FPS, timeout_s=0.4)
    with pytest.raises(CameraError, match=r"delivers 64x48, not 640x480"):
        camera.start()
    camera.stop()


def test_a_missing_device_says_what_to_do() -> None:
    with pytest.raises(CameraError, match=r"cannot open 97.*plugged in"):
        OpenCVCamera("wrist", 97, WIDTH, HEIGHT).start()


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no such file"):
        OpenCVCamera("wrist", str(tmp_path / "none.avi"), WIDTH, HEIGHT).start()


def test_reading_before_the_start_and_nonsense_are_refused() -> None:
    with pytest.raises(CameraError, match=r"call start\(\)"):
        OpenCVCamera("front", 0, WIDTH, HEIGHT).read(0.1)
    with pytest.raises(CameraError, match="positive"):
        OpenCVCamera("front", 0, 0, HEIGHT)


def test_a_video_file_plays_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    for level in (40, 80, 120, 120, 160):
        writer.write(picture(level)[:, :, ::-1])
    writer.release()
    camera = OpenCVCamera("front", str(path), WIDTH, HEIGHT, FPS)
    camera.start()
    frames = [camera.read(1.0) for _ in range(5)]
    assert [round(float(f.image[..., 0].mean()) / 40) for f in frames] == [1, 2, 3, 3, 4]
    assert [f.repeated for f in frames] == [False, False, False, True, False]
    with pytest.raises(CameraError, match="no more frames"):
        camera.read(1.0)
    camera.stop()


def test_a_torn_picture_is_never_passed_on(studio: Studio, camera: OpenCVCamera) -> None:
    camera.start()
    seq = camera.read(1.0).seq
    studio.feed.mode = "half"
    with pytest.raises(CameraError, match="delivers only torn pictures"):
        for _ in range(5):
            image = camera.read(0.4).image
            assert np.ptp(image[..., 0]) < 8, "a flat picture, whole"
    studio.feed.mode = "ok"
    frame = camera.read(1.0)
    assert np.ptp(frame.image[..., 0]) < 8
    assert frame.seq > seq + 5, "the torn ones are counted as missing"
    camera.stop()
    studio.feed.mode = "half"
    with pytest.raises(CameraError, match="torn"):
        camera.start()


def test_what_ends_like_a_jpeg_is_whole() -> None:
    ok, packet = cv2.imencode(".jpg", picture(100)[:, :, ::-1])
    assert ok
    packet = packet.ravel()
    whole = decode_whole(packet)
    assert whole is not None
    assert whole[0, 0].tolist() == pytest.approx([100, 50, 0], abs=4)
    assert decode_whole(np.append(packet, np.zeros(900, np.uint8))) is not None, "padded by the camera"
    assert decode_whole(packet[: len(packet) // 2]) is None
    assert decode_whole(packet[:-2]) is None
    assert decode_whole(packet[2:]) is None
    assert decode_whole(packet[:0]) is None
