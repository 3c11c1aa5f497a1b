"""What can be broken on a running bench: motors, buses, cameras, the free space around the arm."""

from __future__ import annotations

import logging

from hal.bench.emulator_process import EmulatorProcess
from hal.bench.mjpeg import MODES, Feed
from hal.bench.model import CAMERAS
from hal.bench.wire import EmulatorFaults
from hal.bench.world import World
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.errors import BenchError
from hal.types import JOINTS, NUM_JOINTS

log = logging.getLogger(__name__)

ARMS = ("follower", "leader")


def known_arm(arm: str) -> str:
    """``arm`` itself. Raises BenchError when the bench has no such arm."""
    if arm not in ARMS:
        raise BenchError(f"the bench has no arm {arm!r}", f"use {' or '.join(ARMS)}")
    return arm


def _joint(joint: str) -> int:
    if joint not in JOINTS:
        raise BenchError(f"the arm has no joint {joint!r}", f"use one of {', '.join(JOINTS)}")
    return JOINTS.index(joint)


class Breakage:
    """Faults of one bench; called only from its loop."""

    def __init__(self, world: World, buses: EmulatorProcess, feeds: dict[str, Feed]) -> None:
        self._world, self._buses, self._feeds = world, buses, feeds
        self._reported_errors = [0] * NUM_JOINTS

    def motor(
        self, joint: str, friction: float = 0.0, heat: float = 0.0, supply: float = 0.0, strain: bool = False
    ) -> None:
        """Replace the faults of one of the follower's motors; what is not named is healed.

        ``friction`` (N·m) and ``heat`` (°C/s) are added, ``supply`` (V) is had instead of the nominal one,
        and with ``strain`` the motor's overload protection believes it at full duty.
        """
        index, faults = _joint(joint), self._world.faults
        faults.friction_nm[index] = float(friction)
        faults.heat_c_s[index] = float(heat)
        faults.supply_v[index] = float(supply)
        faults.strain[index] = bool(strain)

    def reboot(self, joint: str) -> None:
        """One of the follower's motors loses its power for a moment."""
        self._buses.reboot("follower", KOCH_FOLLOWER.motors[_joint(joint)].id)
        self._world.clear_errors(_joint(joint))
        self._reported_errors[_joint(joint)] = 0  # what still ails it is found again

    def bus(
        self,
        arm: str,
        drop: float = 0.0,
        corrupt: float = 0.0,
        garble: float = 0.0,
        delay_ms: float = 0.0,
        silent_id: int | None = None,
        twin_id: int | None = None,
        disconnect: bool = False,
    ) -> None:
        """Replace the faults of one arm's bus; what is not named is healed."""
        known_arm(arm)
        silent = frozenset[int]() if silent_id is None else frozenset({silent_id})
        faults = EmulatorFaults(
            drop=drop, corrupt=corrupt, garble=garble, delay_ms=delay_ms, silent_ids=silent, twin_id=twin_id
        )
        self._buses.set_faults(arm, faults)
        if disconnect:
            self._buses.disconnect(arm)
        else:
            self._buses.connect(arm)

    def camera(self, camera: str, mode: str) -> None:
        """Make a camera fail in one of MODES."""
        if camera not in self._feeds:
            raise BenchError(f"the bench has no camera {camera!r}", f"use one of {', '.join(CAMERAS)}")
        if mode not in MODES:
            raise BenchError(f"a camera cannot fail by {mode!r}", f"use one of {', '.join(MODES)}")
        self._feeds[camera].mode = mode

    def obstacle(self, xyz: list[float] | None = None) -> None:
        """Put the block at ``xyz`` m, or away."""
        if xyz is None:
            self._world.obstruct(None)
        else:
            x, y, z = (float(v) for v in xyz)
            self._world.obstruct((x, y, z))

    def report_errors(self) -> None:
        """Errors that arose in the world appear in the servos' registers, where they stay until a reboot."""
        errors = list(self._world.hardware_errors)
        fresh = {
            motor.id: errors[i]
            for i, motor in enumerate(KOCH_FOLLOWER.motors)
            if errors[i] & ~self._reported_errors[i]
        }
        self._reported_errors = errors
        if fresh:
            faults = self._buses.faults("follower")
            self._buses.set_faults("follower", faults.model_copy(update={"hardware_error": fresh}))
            self._buses.set_faults("follower", faults)
            log.info("bench_hardware_error motors=%s", fresh)
