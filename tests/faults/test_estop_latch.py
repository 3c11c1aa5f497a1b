"""An e-stop outlives every process that knew of it: only a person clears it."""

from __future__ import annotations

import asyncio

import pytest

from runtime.remote.client import RobotCallError
from tests.tools.acting import ratchet, until_mode
from tools.faults.processes import kill
from tools.faults.rig import Rig
from tools.faults.scene import driving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_an_estop_is_latched_through_the_death_of_bus_process_and_service(rig: Rig) -> None:
    async with driving(rig, "teleop") as scene:
        code, error = await asyncio.to_thread(ratchet, "stop", "--emergency", "--dir", rig.paths.run_dir)
        assert code == 0, error
        await until_mode(scene.robot, "estop")
        (bus,) = rig.bus_processes()
        kill(bus)
        kill(rig.pid)
        rig.service.process.wait()
    await until(lambda: not rig.robot_processes(), "its processes have ended")
    await asyncio.to_thread(rig.start_again)
    async with rig.client() as robot, robot.control("test") as control:
        state = await until_mode(robot, "estop")
        assert "e-stop" in state.reason
        with pytest.raises(RobotCallError):
            await control.enable()
        assert (await robot.state()).mode == "estop"
        await control.clear_estop()
        await control.enable()
        assert (await robot.state()).mode == "ready"
        await robot.stop("the test is over")
