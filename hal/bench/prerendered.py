"""A short scene drawn once and played for ever, so that drawing costs nothing while time is measured.

The pictures are those of the bench's cameras: the arm swings between two poses, there and back. Of
each picture there are several with different sensor noise, so that no two successive frames are
equal. The JPEGs are kept in a folder and found again there.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from hal.bench.mjpeg import encode
from hal.bench.model import CAMERAS
from hal.bench.world import World
from hal.types import JOINTS, Image

log = logging.getLogger(__name__)

POSES = 16
VARIANTS = 3
_NOISE = 4
_SWING_RAD = 0.25


class Prerendered:
    """The pictures of every camera, in an order that never ends. Raises BenchError when drawing fails."""

    def __init__(self, world: World, folder: Path) -> None:
        size = f"{world.config.width}x{world.config.height}"
        self._scenes = {camera: _scene(world, camera, folder / f"{camera}-{size}") for camera in CAMERAS}
        self._next: dict[str, Iterator[bytes]] = {
            camera: itertools.cycle(_play(scene)) for camera, scene in self._scenes.items()
        }

    def next(self, camera: str) -> bytes:
        """The next picture of ``camera``, a JPEG; never the one before."""
        return next(self._next[camera])


def _play(scene: list[list[bytes]]) -> list[bytes]:
    """There and back once for each variant: the whole cycle, whose neighbours all differ."""
    there_and_back = [*range(len(scene)), *range(len(scene) - 2, 0, -1)]
    return [scene[pose][variant] for variant in range(len(scene[0])) for pose in there_and_back]


def _scene(world: World, camera: str, folder: Path) -> list[list[bytes]]:
    """``POSES`` lists of ``VARIANTS`` JPEGs, drawn where they are not in ``folder`` yet."""
    wanted = [[folder / f"{pose:02d}-{variant}.jpg" for variant in range(VARIANTS)] for pose in range(POSES)]
    if not all(path.exists() for row in wanted for path in row):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(world, camera, wanted)
        log.info("bench_prerendered camera=%s folder=%s", camera, folder)
    return [[path.read_bytes() for path in row] for row in wanted]


def _draw(world: World, camera: str, wanted: list[list[Path]]) -> None:
    """Draw the scene with a world of its own making: the bench's stays as it is."""
    stage = World(world.config)
    stage.reset(0)
    rng = np.random.default_rng(0)
    for row, swing in zip(wanted, np.linspace(-1.0, 1.0, len(wanted)), strict=True):
        stage.place_arm(stage.home + _SWING_RAD * swing * np.linspace(1.0, 0.3, len(JOINTS)))
        picture = stage.render(camera)
        for path in row:
            partial = path.with_suffix(".partial")
            partial.write_bytes(encode(_with_noise(picture, rng)))
            partial.replace(path)


def _with_noise(picture: Image, rng: np.random.Generator) -> Image:
    noisy: Image = cv2.add(picture, rng.integers(0, _NOISE, picture.shape).astype(np.uint8))
    return noisy
