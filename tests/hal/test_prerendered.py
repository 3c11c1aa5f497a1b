"""A scene drawn once: found again, played for ever, never the same picture twice in a row."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from hal.bench import prerendered
from hal.bench.mjpeg import Feed
from hal.bench.model import CAMERAS
from hal.bench.prerendered import POSES, VARIANTS, Prerendered
from hal.bench.world import World, WorldConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(width=32, height=32))


def test_no_two_successive_pictures_are_equal(world: World, folder: Path) -> None:
    before = world.position
    scenes = Prerendered(world, folder)
    assert np.array_equal(world.position, before)
    cycle = VARIANTS * (2 * POSES - 2)
    for camera in CAMERAS:
        pictures = [scenes.next(camera) for _ in range(2 * cycle)]
        assert all(a != b for a, b in itertools.pairwise(pictures))
        assert pictures[:cycle] == pictures[cycle:]
        decoded = cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (32, 32, 3)


def test_what_was_drawn_is_found_again(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Prerendered(world, folder).next("front")
    monkeypatch.setattr(prerendered, "World", None)
    assert Prerendered(world, folder).next("front") == first


def test_a_replayed_camera_fails_like_another(world: World, folder: Path) -> None:
    feed, scenes = Feed("front"), Prerendered(world, folder)
    feed.replay(scenes.next("front"), 1)
    first = feed.after(-1, 0.0)
    assert first is not None
    feed.mode = "freeze"
    feed.replay(scenes.next("front"), 2)
    frozen = feed.after(first.number, 0.0)
    assert frozen is not None
    assert (frozen.jpeg, frozen.t_ns) == (first.jpeg, 2)
    feed.mode = "stall"
    feed.replay(scenes.next("front"), 3)
    assert feed.after(frozen.number, 0.0) is None
