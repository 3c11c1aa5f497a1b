"""What the cameras see and the joints do, live in Rerun: a process of its own that only looks.

It reads the camera rings, whose writers never wait for a reader, and the telemetry that the robot offers
to anybody; at the lowest priority. Whatever becomes of it, the robot does not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from protos.access.tls import identity_in
from runtime.camera_handle import CameraHandle, CameraProcessConfig
from runtime.config import RobotConfig
from runtime.remote.client import RobotClient
from runtime.remote.errors import RemoteError
from tools.errors import UsageError
from tools.options import PATH
from tools.robot_door import Door

_RATE_HZ = 15.0
_END_S = 3.0


@contextlib.contextmanager
def live_view(door: Door, wanted: bool) -> Iterator[None]:
    """Show the view while the block runs, if ``wanted``. Raises UsageError where rerun-sdk is missing."""
    if not wanted:
        yield
        return
    if importlib.util.find_spec("rerun") is None:
        raise UsageError("--view needs rerun-sdk; install it with `pip install rerun-sdk`")
    run_dir = (
        door.paths.run_dir / "run" if door.run_dir else Path(RobotConfig.model_fields["run_dir"].default)
    )
    command = [sys.executable, "-m", "tools.rerun_live", door.address, "--rings", str(run_dir)]
    if door.tls is not None:
        command += ["--tls", str(door.tls.ca.parent)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()


@click.command()
@click.argument("address")
@click.option("--rings", type=PATH, required=True)
@click.option("--tls", type=PATH)
def main(address: str, rings: Path, tls: Path | None) -> None:
    """Feed the viewer until ended. Started by `ratchet record --view`."""
    os.nice(19)
    with contextlib.suppress(KeyboardInterrupt, RemoteError):  # the robot is gone: nothing to look at
        asyncio.run(_follow(importlib.import_module("rerun"), address, rings, tls))


async def _follow(rerun: Any, address: str, rings: Path, tls: Path | None) -> None:
    rerun.init("ratchet", spawn=True)
    files = None if tls is None else identity_in(tls)
    cameras = _cameras(rings)
    shown: dict[str, int] = {}
    async with RobotClient(address, files) as robot:
        async for sample in robot.telemetry(_RATE_HZ):
            state = sample.state
            rerun.set_time("robot", duration=sample.t_ns / 1e9)
            for kind, values in (("position", state.position), ("goal", state.goal)):
                for name, value in zip(state.joints, values, strict=False):
                    rerun.log(f"joints/{name}/{kind}", rerun.Scalars(value))
            for camera in cameras:
                frame = camera.latest()
                if frame is not None and shown.get(camera.name) != frame.seq:
                    shown[camera.name] = frame.seq
                    rerun.log(f"cameras/{camera.name}", rerun.Image(frame.image).compress())


def _cameras(rings: Path) -> list[CameraHandle]:
    """The robot's cameras where they are on this machine; none elsewhere."""
    try:
        config = CameraProcessConfig.model_validate_json((rings / "cameras.config.json").read_text())
    except OSError:
        return []
    return [CameraHandle(name, config) for name in config.cameras]


if __name__ == "__main__":
    main()
