"""Finding motors and giving them their id and baud rate, with ROBOTIS' dynamixel-sdk.

This is slow, careful work done once per motor; the control path never comes here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dynamixel_sdk import COMM_SUCCESS, PacketHandler, PortHandler

from hal.dynamixel.arm import MotorSpec
from hal.dynamixel.errors import describe_status
from hal.dynamixel.port import SPEEDS, Port
from hal.dynamixel.tables import BAUD_CODES, MODELS_BY_NUMBER, Register
from hal.errors import MotorError, PortError

_log = logging.getLogger(__name__)

SCAN_BAUDS: tuple[int, ...] = (1_000_000, 57_600, 115_200, 2_000_000, 3_000_000, 4_000_000, 9_600)
"""Rates to look at, the likely ones first: 1 Mbaud is LeRobot's, 57,600 the factory's."""


@dataclass(frozen=True, slots=True)
class FoundMotor:
    """A motor that answered a scan. ``model`` is its name, or None for an unknown number."""

    id: int
    baud: int
    model_number: int
    firmware: int

    @property
    def model(self) -> str | None:
        known = MODELS_BY_NUMBER.get(self.model_number)
        return known.name if known else None


def scan(port: str, bauds: Iterable[int] = SCAN_BAUDS) -> list[FoundMotor]:
    """Every motor that answers on ``port`` at any of ``bauds``; about a second per rate.

    Raises PortError when the port cannot be opened or set to one of the rates.
    """
    found: list[FoundMotor] = []
    for baud in bauds:
        with _open(port, baud) as (handler, packets):
            answers, _ = packets.broadcastPing(handler)
            found += [
                FoundMotor(i, baud, number, firmware) for i, (number, firmware) in sorted(answers.items())
            ]
    return found


def assign(
    port: str, motor: MotorSpec, baud: int = 1_000_000, bauds: Iterable[int] = SCAN_BAUDS
) -> FoundMotor:
    """Give the one motor connected to ``port`` the id of ``motor`` and the rate ``baud``.

    Writes the EEPROM, with torque off and only where it differs; checks by finding the motor
    again. Raises MotorError when there is no motor, more than one, or one of another model, and
    PortError.
    """
    codes = {rate: code for code, rate in BAUD_CODES.items() if rate in SPEEDS}
    if baud not in codes:
        raise PortError(f"motors cannot run at {baud} baud", f"use one of {sorted(codes)}")
    here = _only_one(port, scan(port, bauds), motor)
    with _open(port, here.baud) as (handler, packets):
        _write(handler, packets, here.id, motor.model["Torque_Enable"], 0)
        current = here.id
        if current != motor.id:
            _write(handler, packets, current, motor.model["ID"], motor.id)
            current = motor.id
        if here.baud != baud:
            _write(handler, packets, current, motor.model["Baud_Rate"], codes[baud])
    _log.info(
        "motor assigned: joint=%s id=%d->%d baud=%d->%d", motor.joint, here.id, motor.id, here.baud, baud
    )
    for now in scan(port, (baud,)):
        if now.id == motor.id:
            return now
    raise MotorError(
        f"{motor} does not answer at its new id and {baud} baud",
        "switch its power off and on, then scan again",
    )


def _only_one(port: str, found: list[FoundMotor], motor: MotorSpec) -> FoundMotor:
    if not found:
        raise MotorError(f"no motor answers on {port} at any baud rate", "check power and cable of the motor")
    if len(found) > 1:
        ids = ", ".join(f"{m.id} at {m.baud}" for m in found)
        raise MotorError(
            f"{len(found)} motors answer on {port} (ids {ids})", "connect only the motor to set up, alone"
        )
    if found[0].model_number != motor.model.number:
        name = found[0].model or f"model number {found[0].model_number}"
        raise MotorError(
            f"the motor on {port} is {name}, {motor.joint} needs {motor.model_name}", "connect that one"
        )
    return found[0]


@contextmanager
def _open(port: str, baud: int) -> Iterator[tuple[Any, Any]]:
    probe = Port(port, baud)
    probe.open()  # says in our words what is wrong with the port, which the SDK does not
    probe.close()
    handler = PortHandler(port)
    try:
        if not handler.setBaudRate(baud):
            raise PortError(
                f"{port} cannot be set to {baud} baud", "use an adapter that can, such as ROBOTIS' U2D2"
            )
        yield handler, PacketHandler(2.0)
    finally:
        if handler.is_open:
            handler.closePort()


def _write(handler: Any, packets: Any, motor_id: int, register: Register, value: int) -> None:
    result, error = packets.write1ByteTxRx(handler, motor_id, register.address, value)
    if result != COMM_SUCCESS:
        raise MotorError(
            f"motor {motor_id} does not confirm {register.name} = {value} ({packets.getTxRxResult(result)})",
            "check its cable and try again",
        )
    if error & 0x7F:
        raise MotorError(
            f"motor {motor_id} refuses {register.name} = {value}: {describe_status(error)}",
            "switch its power off and on, then try again",
        )
