"""Rows about cameras and the network to the policy server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from hal.bench.mjpeg import CameraMode
from tools.faults.proxy import SLOW_S, Mode
from tools.faults.row import Row
from tools.faults.scene import Scene, until

CAMERA = "front"


def _camera(name: str, done: str, how: str, mode: CameraMode) -> Row:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        rig = scene.rig
        rig.bench.camera_fault(CAMERA, mode)
        try:
            yield
            await until(lambda: not rig.health()[f"camera.{CAMERA}"]["ok"], "the health page says so")
        finally:
            rig.bench.camera_fault(CAMERA, "ok")

    return Row(
        name=name,
        done=done,
        how=how,
        fault=fault,
        drive="policy",
        state="stands still",
        within_s=4.0,
        recovers="by itself",
        watch_s=2.5,
    )


def _network(name: str, done: str, how: str, mode: Mode) -> Row:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        scene.rig.proxy.mode = mode
        try:
            yield
        finally:
            scene.rig.proxy.mode = "ok"

    return Row(
        name=name,
        done=done,
        how=how,
        fault=fault,
        drive="policy",
        state="stands still",
        within_s=3.0,
        recovers="by itself",
        watch_s=2.5,
    )


ROWS: tuple[Row, ...] = (
    _camera("camera-frozen", "camera frozen", "the same picture again and again", "freeze"),
    _camera("camera-unplugged", "camera unplugged", "its connection closes, new ones are refused", "gone"),
    _camera("camera-half-frames", "camera sends half frames", "each JPEG ends in its middle", "half"),
    _network(
        "policy-partitioned",
        "remote policy server partitioned",
        "a TCP proxy in between passes nothing and closes nothing",
        "partitioned",
    ),
    _network(
        "policy-slow",
        "remote policy server slow by 1 s",
        f"the proxy delivers everything {SLOW_S:g} s later, in both directions",
        "slow",
    ),
    _network(
        "policy-rubbish",
        "remote policy server answers rubbish",
        "the proxy replaces the bytes of its answers by random ones",
        "rubbish",
    ),
)
