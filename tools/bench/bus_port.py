"""Whatever motors there are on a port, as an arm that `ratchet bench bus` can read."""

from __future__ import annotations

import logging

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec, MotorSpec
from hal.dynamixel.block import DIRECT_ADDRESS, DIRECT_BLOCK
from hal.dynamixel.bringup import MotorInfo, map_block
from hal.dynamixel.link import Link
from hal.dynamixel.setup import SCAN_BAUDS, FoundMotor, scan
from hal.errors import MotorError
from tools.console import say
from tools.errors import UsageError

log = logging.getLogger(__name__)

_RETURN_DELAY_UNIT_NS = 2_000


def arm_on(port: str, baud: int | None) -> tuple[ArmSpec, int]:
    """The motors that answer on ``port`` and their rate: a Koch arm where it is one, else as they are.

    Looks at ``baud`` alone, or at each rate until somebody answers. Raises UsageError when nobody does, or a
    motor is of a model whose registers are not known; PortError.
    """
    found: list[FoundMotor] = []
    for rate in (baud,) if baud is not None else SCAN_BAUDS:
        say(f"scanning {port} at {rate} baud")
        found = scan(port, (rate,))
        if found:
            break
    if not found:
        raise UsageError(f"no motor answers on {port}; check its power, or name its rate with --baud")
    strange = [f"{motor.id} (model number {motor.model_number})" for motor in found if motor.model is None]
    if strange:
        raise UsageError(f"motor {', '.join(strange)} on {port} is of no known model; take it off the bus")
    listed = [(motor.id, motor.model_number) for motor in found]
    for spec in (KOCH_FOLLOWER, KOCH_LEADER):
        if listed == [(motor.id, motor.model.number) for motor in spec.motors]:
            return spec, found[0].baud
    motors = tuple(
        MotorSpec(joint=f"motor_{motor.id}", id=motor.id, model_name=str(motor.model)) for motor in found
    )
    return ArmSpec(name="found", motors=motors), found[0].baud


def look_on(
    link: Link, spec: ArmSpec, calibration: Calibration, port: str, baud: int
) -> tuple[MotorInfo, ...]:
    """Meet the motors of ``spec`` without changing any (a ``hal.dynamixel.bus.SetUp``).

    Their state is read through indirect addresses where all of them have these and may be given them, else
    from the registers themselves. Raises MotorError when one does not answer.
    """
    try:
        places = [map_block(link, m, bool(link.read(m, "Torque_Enable"))) for m in spec.motors]
        size = {}
    except MotorError as error:
        log.info("registers are read directly: %s", error)
        places = [DIRECT_ADDRESS for _ in spec.motors]
        size = {"block_bytes": DIRECT_BLOCK.itemsize}
    return tuple(
        MotorInfo(
            motor,
            link.read(motor, "Firmware_Version"),
            link.read(motor, "Operating_Mode"),
            place,
            return_delay_ns=_RETURN_DELAY_UNIT_NS * link.read(motor, "Return_Delay_Time"),
            **size,
        )
        for motor, place in zip(spec.motors, places, strict=True)
    )
