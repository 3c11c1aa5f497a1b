"""One emulated servo: its control table, and what reading and writing it does.

Semantics follow the ROBOTIS e-Manual: access errors, EEPROM locked while torque is on, position
limits, indirect addressing, the bus watchdog and shutdown on hardware errors.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from hal.bench.judge import Judge
from hal.bench.motors import MotorBackend, MotorSample
from hal.dynamixel.errors import StatusError
from hal.dynamixel.packet import ALERT_BIT
from hal.dynamixel.tables import (
    BAUD_CODES,
    POSITION_MODE,
    TICKS_PER_TURN,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_MS,
    Model,
    Register,
)

_PRESENT = struct.Struct("<HBBhhiiiiHBB")  # registers 120 to 147, without a gap
_PRESENT_AT = 120
_GOALS = frozenset({"Goal_PWM", "Goal_Current", "Goal_Velocity", "Goal_Position"})
_RAD_PER_S_PER_UNIT = 0.229 * 2 * math.pi / 60
_REBOOT_NS = 100_000_000


def indirect_registers(model: Model, data_address: int) -> list[Register]:
    """The Indirect_Address words of a model whose indirect data begins at ``data_address``."""
    count = min((data_address - model.indirect_address) // 2, 28)
    return [
        Register(
            f"Indirect_Address_{k + 1}", model.indirect_address + 2 * k, 2, True, False, False, None, 64, 661
        )
        for k in range(count)
    ]


class EmulatedMotor:
    """Motor ``index`` of a backend behind a control table; it tells ``judge`` what it is told."""

    def __init__(
        self,
        index: int,
        model: Model,
        motor_id: int,
        baud_code: int,
        backend: MotorBackend,
        firmware: int = 52,
        indirect_data: int | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.index = index
        self._judge = judge or Judge(index + 1)
        self.model = model
        self.firmware = firmware
        self._backend = backend
        self._memory = bytearray(model.table_bytes)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._data_at = indirect_data if indirect_data is not None else model.indirect_data[0]
        self._indirect = indirect_registers(model, self._data_at)
        self._at = {r.address: r for r in (*model.registers, *self._indirect)}
        self._defined = {r.address + i for r in self._at.values() for i in range(r.size)}
        self._map = np.arange(model.table_bytes)
        self._registered: tuple[int, bytes] | None = None
        self._silent_until_ns = 0
        self._last_instruction_ns = 0
        for register in model.registers:
            self.poke(register.name, register.initial or 0)
        self.poke("Firmware_Version", firmware)
        self.poke("ID", motor_id)
        self.poke("Baud_Rate", baud_code)
        self._start_up()

    def peek(self, name: str) -> int:
        """Value of register ``name``, bypassing access rules."""
        register = self.model[name]
        return register.decode(bytes(self._memory[register.address : register.address + register.size]))

    def poke(self, name: str, value: int) -> None:
        """Set register ``name``, bypassing access rules and side effects."""
        register = self.model[name]
        self._memory[register.address : register.address + register.size] = register.encode(value)

    @property
    def id(self) -> int:
        return self._memory[7]

    @property
    def baud(self) -> int:
        return BAUD_CODES[self._memory[8]]

    @property
    def alert(self) -> int:
        """ALERT_BIT while a hardware error is present, else 0."""
        return ALERT_BIT if self._memory[70] else 0

    @property
    def torque(self) -> bool:
        return bool(self._memory[64])

    def present(self, now_ns: int) -> bool:
        """False while the motor restarts after a reboot."""
        return now_ns >= self._silent_until_ns

    def read(self, address: int, count: int) -> tuple[int, bytes]:
        """(error number, ``count`` bytes from ``address``); gaps between registers read 0."""
        if count == 0 or address + count > self.model.table_bytes:
            return StatusError.ACCESS, b""
        return StatusError.OK, self._bytes[self._map[address : address + count]].tobytes()

    def write(self, address: int, data: bytes) -> int:
        """Write whole registers; returns the error number and changes nothing when it is not 0."""
        changes: list[tuple[Register, int]] = []
        error = self._plan(address, data, changes)
        if error:
            return error
        for register, value in changes:
            self._memory[register.address : register.address + register.size] = register.encode(value)
            self._effect(register, value)
        return StatusError.OK

    def register_write(self, address: int, data: bytes) -> int:
        """Keep a write for ``action``."""
        error = self._plan(address, data, [])
        if not error:
            self._registered = (address, data)
            self._memory[69] = 1
        return error

    def action(self) -> int:
        """Carry out the kept write."""
        if self._registered is None:
            return StatusError.INSTRUCTION
        (address, data), self._registered = self._registered, None
        self._memory[69] = 0
        return self.write(address, data)

    def reboot(self, now_ns: int) -> None:
        """Restart: RAM back to its initial values, torque off, silent for 0.1 s."""
        for register in self.model.registers:
            if not register.eeprom:
                self.poke(register.name, register.initial or 0)
        self._map[:] = np.arange(self.model.table_bytes)
        self._registered = None
        self._silent_until_ns = now_ns + _REBOOT_NS
        self._start_up()
        self._release()

    def heard(self, now_ns: int) -> None:
        """An instruction was seen on the bus: the watchdog's time starts again."""
        self._last_instruction_ns = now_ns

    def watch(self, now_ns: int) -> None:
        """Trip the bus watchdog when it is due: the motor stops where it is."""
        limit = self._memory[98]
        if not self.torque or limit in (0, WATCHDOG_TRIPPED):
            return
        if now_ns - self._last_instruction_ns > limit * WATCHDOG_UNIT_MS * 1_000_000:
            self._memory[98] = WATCHDOG_TRIPPED
            position = float(self._backend.read().position[self.index])
            self._judge.stop(self.index, position)
            self._backend.set_goal(self.index, position)

    def set_hardware_error(self, bits: int) -> None:
        """Report ``bits``; those in register Shutdown also cut the torque until a reboot."""
        self._memory[70] = bits
        if bits & self._memory[63] and self.torque:
            self._memory[64] = 0
            self._release()

    def refresh(self, sample: MotorSample, now_ns: int) -> None:
        """Put the physical state into the Present_… registers, with the motor's resolution."""
        i = self.index
        moving = bool(sample.moving[i])
        _PRESENT.pack_into(
            self._memory,
            _PRESENT_AT,
            (now_ns // 1_000_000) & 0x7FFF,
            moving,
            moving << 4,
            0,
            _clip16(self._sign() * round(float(sample.effort[i]) * 1000)),
            self._sign() * round(float(sample.velocity[i]) / _RAD_PER_S_PER_UNIT),
            self._present_ticks(float(sample.position[i])),
            0,
            self.peek("Goal_Position"),
            max(0, min(round(float(sample.voltage[i]) * 10), 0xFFFF)),
            max(0, min(round(float(sample.temperature[i])), 0xFF)),
            1,
        )

    def _start_up(self) -> None:
        for register in self._indirect:
            self._memory[register.address : register.address + 2] = b"\xe0\x00"
        sample = self._backend.read()
        self.refresh(sample, 0)
        self.poke("Goal_Position", self.peek("Present_Position"))

    def _sign(self) -> int:
        return -1 if self._memory[10] & 1 else 1

    def _present_ticks(self, position_rad: float) -> int:
        ticks = self._sign() * round(2048 + position_rad * TICKS_PER_TURN / (2 * math.pi))
        if self._memory[11] == POSITION_MODE:
            ticks %= TICKS_PER_TURN
        return ticks + self.peek("Homing_Offset")

    def _goal_rad(self, goal: int) -> float:
        ticks = self._sign() * (goal - self.peek("Homing_Offset"))
        if self._memory[11] == POSITION_MODE:
            ticks %= TICKS_PER_TURN
        return (ticks - 2048) * 2 * math.pi / TICKS_PER_TURN

    def _energise(self, position: float) -> None:
        self._judge.energise(self.index, position)
        self._backend.set_goal(self.index, position)
        self._backend.set_torque(self.index, True)

    def _release(self) -> None:
        self._judge.release(self.index)
        self._backend.set_torque(self.index, False)

    def _plan(self, address: int, data: bytes, changes: list[tuple[Register, int]]) -> int:
        stop = address + len(data)
        if not data or stop > self.model.table_bytes:
            return StatusError.DATA_LENGTH if not data else StatusError.ACCESS
        targets = self._map[address:stop].tolist()
        i = 0
        while i < len(data):
            register = self._at.get(targets[i])
            if register is None:
                inside = targets[i] in self._defined
                return StatusError.DATA_LENGTH if inside else StatusError.ACCESS
            run = targets[i : i + register.size]
            if run != list(range(register.address, register.address + register.size)):
                return StatusError.DATA_LENGTH
            value = register.decode(data[i : i + register.size])
            error = self._check(register, value)
            if error:
                return error
            changes.append((register, value))
            i += register.size
        return StatusError.OK

    def _check(self, register: Register, value: int) -> int:
        if not register.writable or (register.eeprom and self.torque):
            return StatusError.ACCESS
        if register.name in _GOALS and self._memory[98] == WATCHDOG_TRIPPED:
            return StatusError.DATA_RANGE
        if register.name == "Bus_Watchdog" and value and self._memory[98] == WATCHDOG_TRIPPED:
            return StatusError.DATA_RANGE
        if register.name == "Operating_Mode" and value not in self.model.modes:
            return StatusError.DATA_RANGE
        if register.minimum is not None and not register.minimum <= value <= (register.maximum or 0):
            return StatusError.DATA_RANGE
        if register.name == "Goal_Position" and self._memory[11] == POSITION_MODE:
            low, high = self.peek("Min_Position_Limit"), self.peek("Max_Position_Limit")
            return StatusError.OK if low <= value <= high else StatusError.DATA_LIMIT
        if register.name == "Torque_Enable" and value and self._memory[70] & self._memory[63]:
            return StatusError.RESULT_FAIL
        return StatusError.OK

    def _effect(self, register: Register, value: int) -> None:
        if register.name == "Torque_Enable":
            if value:
                self._energise(self._goal_rad(self.peek("Goal_Position")))
            else:
                self._release()
        elif register.name == "Goal_Position" and self.torque:
            position = self._goal_rad(value)
            self._judge.goal(self.index, position)
            self._backend.set_goal(self.index, position)
        elif register.name.startswith("Indirect_Address"):
            self._map[self._data_at + (register.address - self.model.indirect_address) // 2] = value


def _clip16(value: int) -> int:
    return max(-0x8000, min(value, 0x7FFF))
