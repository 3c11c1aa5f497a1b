"""Control tables of the motors in a Koch arm: XL330-M288, XL330-M077, XL430-W250.

Facts from the ROBOTIS e-Manual. Values in the tables are raw register units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

BAUD_CODES: dict[int, int] = {
    0: 9_600,
    1: 57_600,
    2: 115_200,
    3: 1_000_000,
    4: 2_000_000,
    5: 3_000_000,
    6: 4_000_000,
    7: 4_500_000,
}
"""Value of register Baud_Rate to bit/s."""

TICKS_PER_TURN = 4096
POSITION_MODE = 3
EXTENDED_POSITION_MODE = 4
CURRENT_POSITION_MODE = 5
WATCHDOG_UNIT_MS = 20
WATCHDOG_TRIPPED = 0xFF


@dataclass(frozen=True, slots=True)
class Register:
    """One entry: byte address, size in bytes, access, area, initial raw value, allowed range."""

    name: str
    address: int
    size: int
    writable: bool
    eeprom: bool = False
    signed: bool = False
    initial: int | None = None
    minimum: int | None = None
    maximum: int | None = None

    def encode(self, value: int) -> bytes:
        """Little-endian bytes of ``value``. Raises OverflowError when it does not fit."""
        return value.to_bytes(self.size, "little", signed=self.signed or value < 0)

    def decode(self, data: bytes) -> int:
        """The value of the first ``size`` bytes of ``data``."""
        return int.from_bytes(data[: self.size], "little", signed=self.signed)


@dataclass(frozen=True)
class Model:
    """One motor model: number, registers, and where its indirect area lies.

    ``indirect_data`` lists the addresses at which firmware of this model is known to keep its
    indirect data; ``indirect_count`` bytes can be mapped through the words from
    ``indirect_address`` on. ``measures_current`` is False where Present_Load (0.1 %) stands in
    for Present_Current (1 mA). ``modes`` are the operating modes it has.
    """

    name: str
    number: int
    registers: tuple[Register, ...]
    modes: frozenset[int]
    measures_current: bool
    indirect_address: int
    indirect_data: tuple[int, ...]
    indirect_count: int
    min_firmware: int
    table_bytes: int = 700

    @cached_property
    def by_name(self) -> dict[str, Register]:
        return {register.name: register for register in self.registers}

    def __getitem__(self, name: str) -> Register:
        return self.by_name[name]

    @property
    def effort(self) -> Register:
        """Present_Current or, without current sensing, Present_Load; both at address 126."""
        return self["Present_Current" if self.measures_current else "Present_Load"]


def _eeprom(
    name: str,
    address: int,
    size: int,
    initial: int | None,
    low: int | None = None,
    high: int | None = None,
    *,
    signed: bool = False,
) -> Register:
    return Register(name, address, size, low is not None, True, signed, initial, low, high)


def _ram(
    name: str,
    address: int,
    size: int,
    initial: int | None = None,
    low: int | None = None,
    high: int | None = None,
    *,
    signed: bool = False,
) -> Register:
    return Register(name, address, size, low is not None, False, signed, initial, low, high)


_IDENTITY = (
    _eeprom("Model_Information", 2, 4, None),
    _eeprom("Firmware_Version", 6, 1, None),
    _eeprom("ID", 7, 1, 1, 0, 252),
    _eeprom("Return_Delay_Time", 9, 1, 250, 0, 254),
    _eeprom("Operating_Mode", 11, 1, 3, 0, 16),
    _eeprom("Secondary_ID", 12, 1, 255, 0, 255),
    _eeprom("Protocol_Type", 13, 1, 2, 1, 22),
    _eeprom("Homing_Offset", 20, 4, 0, -1_044_479, 1_044_479, signed=True),
    _eeprom("Moving_Threshold", 24, 4, 10, 0, 1023),
    _eeprom("PWM_Limit", 36, 2, 885, 0, 885),
    _eeprom("Max_Position_Limit", 48, 4, 4095, 0, 4095),
    _eeprom("Min_Position_Limit", 52, 4, 0, 0, 4095),
    _eeprom("Startup_Configuration", 60, 1, 0, 0, 3),
)

_COMMON_RAM = (
    _ram("Torque_Enable", 64, 1, 0, 0, 1),
    _ram("LED", 65, 1, 0, 0, 1),
    _ram("Status_Return_Level", 68, 1, 2, 0, 2),
    _ram("Registered_Instruction", 69, 1, 0),
    _ram("Hardware_Error_Status", 70, 1, 0),
    _ram("Feedforward_2nd_Gain", 88, 2, 0, 0, 16_383),
    _ram("Feedforward_1st_Gain", 90, 2, 0, 0, 16_383),
    _ram("Bus_Watchdog", 98, 1, 0, 0, 127),
    _ram("Goal_PWM", 100, 2, None, -885, 885, signed=True),
    _ram("Goal_Velocity", 104, 4, None, -2047, 2047, signed=True),
    _ram("Profile_Acceleration", 108, 4, 0, 0, 32_767),
    _ram("Profile_Velocity", 112, 4, 0, 0, 32_767),
    _ram("Goal_Position", 116, 4, None, -1_048_575, 1_048_575, signed=True),
    _ram("Realtime_Tick", 120, 2),
    _ram("Moving", 122, 1),
    _ram("Moving_Status", 123, 1),
    _ram("Present_PWM", 124, 2, signed=True),
    _ram("Present_Velocity", 128, 4, signed=True),
    _ram("Present_Position", 132, 4, signed=True),
    _ram("Velocity_Trajectory", 136, 4, signed=True),
    _ram("Position_Trajectory", 140, 4, signed=True),
    _ram("Present_Input_Voltage", 144, 2),
    _ram("Present_Temperature", 146, 1),
    _ram("Backup_Ready", 147, 1),
)


def _gains(velocity: tuple[int, int], position: tuple[int, int, int]) -> tuple[Register, ...]:
    names = ("Velocity_I_Gain", "Velocity_P_Gain", "Position_D_Gain", "Position_I_Gain", "Position_P_Gain")
    values = (*velocity, *position)
    return tuple(
        _ram(n, 76 + 2 * i, 2, v, 0, 16_383) for i, (n, v) in enumerate(zip(names, values, strict=True))
    )


def _in_order(*groups: tuple[Register, ...]) -> tuple[Register, ...]:
    return tuple(sorted((r for group in groups for r in group), key=lambda r: r.address))


XL330_M288 = Model(
    name="xl330-m288",
    number=1200,
    registers=_in_order(
        _IDENTITY,
        _COMMON_RAM,
        _gains((1600, 180), (0, 0, 400)),
        (
            _eeprom("Model_Number", 0, 2, 1200),
            _eeprom("Baud_Rate", 8, 1, 1, 0, 6),
            _eeprom("Drive_Mode", 10, 1, 0, 0, 13),
            _eeprom("Temperature_Limit", 31, 1, 70, 0, 100),
            _eeprom("Max_Voltage_Limit", 32, 2, 70, 31, 70),
            _eeprom("Min_Voltage_Limit", 34, 2, 35, 31, 70),
            _eeprom("Current_Limit", 38, 2, 1750, 0, 1750),
            _eeprom("Velocity_Limit", 44, 4, 445, 0, 2047),
            _eeprom("PWM_Slope", 62, 1, 140, 1, 255),
            _eeprom("Shutdown", 63, 1, 53, 0, 255),
            _ram("Goal_Current", 102, 2, None, -1750, 1750, signed=True),
            _ram("Present_Current", 126, 2, signed=True),
        ),
    ),
    modes=frozenset({0, 1, 3, 4, 5, 16}),
    measures_current=True,
    indirect_address=168,
    indirect_data=(208, 224),
    indirect_count=20,
    min_firmware=1,
)


def _variant(base: Model, name: str, number: int, initial: dict[str, int]) -> Model:
    changed = {"Model_Number": number, **initial}
    registers = tuple(replace(r, initial=changed.get(r.name, r.initial)) for r in base.registers)
    return replace(base, name=name, number=number, registers=registers)


XL330_M077 = _variant(
    XL330_M288,
    "xl330-m077",
    1190,
    {"Velocity_Limit": 1620, "Velocity_I_Gain": 400, "Velocity_P_Gain": 40, "Position_I_Gain": 400},
)

XL430_W250 = Model(
    name="xl430-w250",
    number=1060,
    registers=_in_order(
        _IDENTITY,
        _COMMON_RAM,
        _gains((1000, 100), (4000, 0, 640)),
        (
            _eeprom("Model_Number", 0, 2, 1060),
            _eeprom("Baud_Rate", 8, 1, 1, 0, 7),
            _eeprom("Drive_Mode", 10, 1, 0, 0, 5),
            _eeprom("Temperature_Limit", 31, 1, 72, 0, 100),
            _eeprom("Max_Voltage_Limit", 32, 2, 140, 60, 140),
            _eeprom("Min_Voltage_Limit", 34, 2, 60, 60, 140),
            _eeprom("Acceleration_Limit", 40, 4, 32_767, 0, 32_767),
            _eeprom("Velocity_Limit", 44, 4, 415, 0, 1023),
            _eeprom("Shutdown", 63, 1, 52, 0, 255),
            _ram("Present_Load", 126, 2, signed=True),
        ),
    ),
    modes=frozenset({1, 3, 4, 16}),
    measures_current=False,
    indirect_address=168,
    indirect_data=(224,),
    indirect_count=28,
    min_firmware=38,  # the bus watchdog came with firmware 38
)

MODELS: dict[str, Model] = {m.name: m for m in (XL330_M288, XL330_M077, XL430_W250)}
MODELS_BY_NUMBER: dict[int, Model] = {m.number: m for m in MODELS.values()}
