"""Cameras in their own process: frames arrive whole, a failing camera is reported and comes back."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hal.errors import CameraError
from hal.types import Frame
from runtime.camera_handle import CameraHandle, CameraProcessConfig, CameraSet, CameraSpec
from runtime.camera_process import FRAME_CAPACITY, STATUS, CameraWorker
from runtime.errors import CameraProcessError
from runtime.ring import create_ring, frame_dtype
from tests.runtime.waiting import until

WIDTH, HEIGHT = 64, 48


def config(run_dir: Path, source: str = "x") -> CameraProcessConfig:
    spec = CameraSpec(source=source, width=WIDTH, height=HEIGHT)
    return CameraProcessConfig(
        cameras={"front": spec}, run_dir=run_dir, timeout_s=0.5, retry_s=0.05, frozen_s=0.5
    )


class FakeCamera:
    """Counts up in every pixel; does what ``script`` says for its next pictures."""

    def __init__(self) -> None:
        self.name = "front"
        self.seq = 0
        self.opened = self.closed = 0
        self.refuse_start = self.fail = self.wrong_size = self.frozen = False

    def start(self) -> None:
        self.opened += 1
        if self.refuse_start:
            raise CameraError("camera front is unplugged", "plug it in")

    def read(self, timeout_s: float) -> Frame:
        time.sleep(0.002)
        if self.fail:
            raise CameraError("camera front delivers nothing", "check its cable")
        self.seq += 1
        size = (HEIGHT, WIDTH // 2, 3) if self.wrong_size else (HEIGHT, WIDTH, 3)
        image = np.full(size, self.seq % 256, np.uint8)
        return Frame("front", self.seq, time.monotonic_ns(), image, self.frozen or self.seq % 10 == 0)

    def stop(self) -> None:
        self.closed += 1


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[FakeCamera, CameraHandle]]:
    """A worker in a thread here, with a camera that the test commands."""
    settings = config(tmp_path)
    create_ring(settings.ring("front"), frame_dtype(HEIGHT, WIDTH), FRAME_CAPACITY)
    create_ring(settings.status("front"), STATUS, FRAME_CAPACITY)
    handle = CameraHandle("front", settings)
    camera, stop = FakeCamera(), threading.Event()
    worker = CameraWorker("front", settings.cameras["front"], settings, lambda *_: camera, stop)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield camera, handle
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert camera.closed == camera.opened


def test_frames_arrive_whole_and_in_order(worker: tuple[FakeCamera, CameraHandle]) -> None:
    _, handle = worker
    seen: list[Frame] = []

    def collect() -> bool:
        frame = handle.latest()
        if frame is not None and (not seen or frame.seq != seen[-1].seq):
            seen.append(frame)
        return len(seen) >= 40

    until(collect, "forty frames")
    assert all((frame.image == frame.seq % 256).all() for frame in seen)
    assert all(b.seq > a.seq and b.t_ns > a.t_ns for a, b in itertools.pairwise(seen))
    assert all(frame.repeated == (frame.seq % 10 == 0) for frame in seen)
    assert seen[0].image.shape == (HEIGHT, WIDTH, 3)


def test_failing_camera_is_reported_and_comes_back(worker: tuple[FakeCamera, CameraHandle]) -> None:
    camera, handle = worker
    until(lambda: handle.latest() is not None, "a frame")
    camera.refuse_start = camera.fail = True
    until(lambda: (s := handle.status()) is not None and not s.ok and s.failures >= 3, "failures")
    status = handle.status()
    assert status is not None
    assert "camera front" in status.message
    until(lambda: handle.latest() is None, "the last picture to grow old")
    camera.refuse_start = camera.fail = False
    until(lambda: handle.latest() is not None, "pictures again")
    status = handle.status()
    assert status is not None
    assert status.ok
    assert status.message == ""


def test_a_picture_that_stands_still_is_withheld_until_it_moves(
    worker: tuple[FakeCamera, CameraHandle],
) -> None:
    camera, handle = worker
    until(lambda: handle.latest() is not None, "a frame")
    camera.frozen = True
    until(lambda: handle.latest() is None, "the last picture to grow old")
    status = handle.status()
    assert status is not None
    assert not status.ok
    assert "same picture" in status.message
    assert camera.opened == 1
    camera.frozen = False
    until(lambda: handle.latest() is not None, "pictures again")
    status = handle.status()
    assert status is not None
    assert status.ok


def test_pictures_of_another_size_are_an_error(worker: tuple[FakeCamera, CameraHandle]) -> None:
    camera, handle = worker
    camera.wrong_size = True
    until(lambda: (s := handle.status()) is not None and not s.ok, "the error")
    status = handle.status()
    assert status is not None
    assert "(48, 32, 3)" in status.message


@pytest.fixture
def video(tmp_path: Path) -> str:
    """A short film that the OpenCV driver can open like a camera."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write a film")
    for n in range(300):
        writer.write(np.full((HEIGHT, WIDTH, 3), n % 256, np.uint8))
    writer.release()
    return str(path)


def test_process_delivers_dies_and_is_started_again(tmp_path: Path, video: str) -> None:
    cameras = CameraSet(config(tmp_path / "run", video))
    cameras.start()
    try:
        handle = cameras.handles["front"]
        until(lambda: handle.latest(max_age_s=10) is not None, "a frame")
        with pytest.raises(CameraProcessError, match="running"):
            cameras.start()
        frame = handle.latest(max_age_s=10)
        assert frame is not None
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert cameras.pid is not None
        os.kill(cameras.pid, signal.SIGKILL)
        until(lambda: not cameras.alive(), "its death")
        until(lambda: handle.latest() is None, "the last picture to grow old")
        cameras.start()
        until(lambda: handle.latest() is not None, "pictures again, through the same handle")
    finally:
        cameras.stop()
    assert not cameras.alive()
    cameras.stop()
