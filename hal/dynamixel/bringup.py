"""Bring-up of an arm's motors: are they the right ones, set the way the bus needs them.

EEPROM is written only where it differs, and never under torque. Homing offsets stay 0 in the
motors: in extended position mode with an offset some firmware moves when its bus watchdog
trips, and so that case cannot arise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from hal.calibration import Calibration
from hal.dynamixel.arm import ArmSpec, MotorSpec
from hal.dynamixel.block import BLOCK_BYTES, block_addresses
from hal.dynamixel.link import Link
from hal.dynamixel.tables import EXTENDED_POSITION_MODE, MODELS_BY_NUMBER, POSITION_MODE
from hal.errors import MotorError

_log = logging.getLogger(__name__)

_SLOW_TAIL = slice(10, 13)  # voltage and temperature in the block: they do not change between reads
_RETURN_ALL = 2


@dataclass(frozen=True, slots=True)
class MotorInfo:
    """What one motor turned out to be. ``block_address`` is where its state block can be read, of
    ``block_bytes`` bytes; ``return_delay_ns`` how long it waits before it replies."""

    spec: MotorSpec
    firmware: int
    operating_mode: int
    block_address: int
    block_bytes: int = BLOCK_BYTES
    return_delay_ns: int = 0


def bring_up(
    link: Link, spec: ArmSpec, calibration: Calibration, port: str, baud: int
) -> tuple[MotorInfo, ...]:
    """Check and set up every motor of ``spec``. Raises MotorError naming motor, joint and remedy."""
    pings = {motor.id: link.ping(motor.id) for motor in spec.motors}
    if all(ping is None for ping in pings.values()):
        raise MotorError(
            f"no motor of {spec.name} answers on {port} at {baud} baud",
            "check the arm's power supply, the port and, with `ratchet doctor`, the baud rate",
        )
    infos = []
    for index, motor in enumerate(spec.motors):
        firmware = _check_identity(link, motor, pings[motor.id])
        mode = working_mode(motor, calibration.crosses_encoder_zero(index))
        link.write(motor, "Status_Return_Level", _RETURN_ALL)
        torque = bool(link.read(motor, "Torque_Enable"))
        _settle_eeprom(link, motor, mode, torque)
        _settle_gains(link, motor)
        infos.append(MotorInfo(motor, firmware, mode, map_block(link, motor, torque)))
    return tuple(infos)


def working_mode(motor: MotorSpec, crosses_encoder_zero: bool) -> int:
    """Position mode counts 0 to 4095 and turns the long way round past its ends: a joint whose
    range lies across them works in extended position mode, unwrapped in software."""
    if motor.operating_mode == POSITION_MODE and crosses_encoder_zero:
        return EXTENDED_POSITION_MODE
    return motor.operating_mode


def _check_identity(link: Link, motor: MotorSpec, ping: tuple[int, int] | None) -> int:
    if ping is None:
        raise link.no_answer(motor) if link.ping(motor.id) is None else _unsteady(motor)
    number, firmware = ping
    if number != motor.model.number:
        found = MODELS_BY_NUMBER[number].name if number in MODELS_BY_NUMBER else f"model number {number}"
        raise MotorError(
            f"{motor} is {found}, not {motor.model_name}",
            "check the ids with `ratchet doctor`, and that follower and leader are not swapped",
        )
    if firmware < motor.model.min_firmware:
        raise MotorError(
            f"{motor} has firmware {firmware}; {motor.model.min_firmware} is needed for the bus watchdog",
            "update it with Dynamixel Wizard 2.0",
        )
    return firmware


def _unsteady(motor: MotorSpec) -> MotorError:
    return MotorError(f"{motor} answers only now and then", "check its cable and connectors")


def eeprom_settings(mode: int) -> dict[str, int]:
    """Register → raw value that every motor of an arm keeps in its EEPROM; ``mode`` is its operating mode."""
    return {
        "Return_Delay_Time": 0,
        "Drive_Mode": 0,
        "Operating_Mode": mode,
        "Homing_Offset": 0,
        "Min_Position_Limit": 0,
        "Max_Position_Limit": 4095,
        "Startup_Configuration": 0,
    }


def _settle_eeprom(link: Link, motor: MotorSpec, mode: int, torque: bool) -> None:
    for name, value in eeprom_settings(mode).items():
        found = link.read(motor, name)
        if found == value:
            continue
        if torque:
            raise _under_torque(motor, f"{name} is {found}, not {value}")
        _log.info("motor set up: motor=%s register=%s from=%d to=%d", motor, name, found, value)
        link.write(motor, name, value)
        if link.read(motor, name) != value:
            raise MotorError(f"{motor} did not keep {name} = {value}", "replace the motor if this returns")


def _settle_gains(link: Link, motor: MotorSpec) -> None:
    if motor.gains is None:
        return
    for name, value in (("P", motor.gains.p), ("I", motor.gains.i), ("D", motor.gains.d)):
        register = f"Position_{name}_Gain"
        if link.read(motor, register) != value:
            link.write(motor, register, value)


def map_block(link: Link, motor: MotorSpec, torque: bool) -> int:
    """Point the indirect addresses at the state block; returns the address where it reads right.

    Raises MotorError when it has none, or its torque is on and they are not set.
    """
    start = motor.model.indirect_address
    wanted = b"".join(address.to_bytes(2, "little") for address in block_addresses(motor.model))
    if link.read_bytes(motor, start, 2 * BLOCK_BYTES) != wanted:
        if torque:
            raise _under_torque(motor, "its indirect addresses are not set")
        link.write_bytes(motor, start, wanted, "the indirect addresses")
        if link.read_bytes(motor, start, 2 * BLOCK_BYTES) != wanted:
            raise MotorError(f"{motor} did not keep its indirect addresses", "update its firmware")
    for address in motor.model.indirect_data:
        block = link.read_bytes(motor, address, BLOCK_BYTES)
        voltage = link.read_bytes(motor, motor.model["Present_Input_Voltage"].address, 3)
        if all(abs(a - b) <= 2 for a, b in zip(block[_SLOW_TAIL], voltage, strict=True)):
            return address
    raise MotorError(
        f"{motor} does not show its state through indirect addressing",
        "update its firmware with Dynamixel Wizard",
    )


def _under_torque(motor: MotorSpec, why: str) -> MotorError:
    return MotorError(
        f"{motor} must be set up ({why}) but its torque is on",
        "support the arm by hand, then switch its power off and on",
    )
