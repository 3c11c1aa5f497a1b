"""Whatever motors there are on a port, as an arm that `ratchet bench bus` can read."""

from __future__ import annotations

from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec, MotorSpec
from hal.dynamixel.setup import SCAN_BAUDS, FoundMotor, scan
from tools.console import say
from tools.errors import UsageError


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
