"""Looking at an arm's motors without changing anything: settings, supply, temperature, errors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hal.calibration import Calibration
from hal.dynamixel.arm import ArmSpec, MotorSpec
from hal.dynamixel.bringup import eeprom_settings, working_mode
from hal.dynamixel.link import Link
from hal.dynamixel.port import Port

_MARGIN_NS = 10_000_000  # nothing waits for this: be patient
_ATTEMPTS = 3
_VOLTS = 0.1
_DELAY_UNIT_US = 2


@dataclass(frozen=True, slots=True)
class MotorReport:
    """One motor as it was found.

    ``wrong`` maps registers of its EEPROM that are not as the arm needs them to (found, wanted), raw.
    ``return_delay_us`` µs that it waits before each reply, ``voltage`` V, ``temperature`` and
    ``temperature_limit`` °C, ``hardware_error`` the error byte, ``shutdown`` the errors at which it gives up.
    """

    motor: MotorSpec
    wrong: dict[str, tuple[int, int]]
    return_delay_us: int
    voltage: float
    temperature: float
    temperature_limit: float
    hardware_error: int
    shutdown: int
    torque: bool


def inspect(
    port: str, baud: int, spec: ArmSpec, calibration: Calibration | None, ids: Collection[int]
) -> list[MotorReport]:
    """Read the motors of ``spec`` with these ``ids``. Raises PortError, MotorError when one falls silent."""
    line = Port(port, baud)
    line.open()
    try:
        link = Link(line, _MARGIN_NS, _ATTEMPTS)
        return [
            _inspect(link, motor, calibration is not None and calibration.crosses_encoder_zero(index))
            for index, motor in enumerate(spec.motors)
            if motor.id in ids
        ]
    finally:
        line.close()


def _inspect(link: Link, motor: MotorSpec, crosses_encoder_zero: bool) -> MotorReport:
    settings = eeprom_settings(working_mode(motor, crosses_encoder_zero))
    found = {name: link.read(motor, name) for name in settings}
    return MotorReport(
        motor=motor,
        wrong={name: (found[name], value) for name, value in settings.items() if found[name] != value},
        return_delay_us=found["Return_Delay_Time"] * _DELAY_UNIT_US,
        voltage=link.read(motor, "Present_Input_Voltage") * _VOLTS,
        temperature=float(link.read(motor, "Present_Temperature")),
        temperature_limit=float(link.read(motor, "Temperature_Limit")),
        hardware_error=link.read(motor, "Hardware_Error_Status"),
        shutdown=link.read(motor, "Shutdown"),
        torque=bool(link.read(motor, "Torque_Enable")),
    )
