"""Single-motor transactions with retries and errors in words: set-up, checks, torque, watchdog.

A status packet does not say which instruction it answers. The port drops what arrived before an
instruction is sent; a reply that is later still is told apart by its length, and after a retry,
when a late twin of the same length may be under way, the line is listened to until it is quiet. Only a
reply that is later than the whole deadline of a retry and that quiet time could be mistaken, by a register
of the same size in the same motor.
"""

from __future__ import annotations

import time

from hal.dynamixel.arm import MotorSpec
from hal.dynamixel.errors import describe_status
from hal.dynamixel.packet import (
    BROADCAST_ID,
    OVERHEAD,
    STATUS_OVERHEAD,
    Instruction,
    Packet,
    PacketParser,
    build,
)
from hal.dynamixel.port import Port
from hal.errors import MotorError

_EEPROM_NS = 20_000_000  # a motor may be busy writing its EEPROM before it replies


class Link:
    """Talks to one motor at a time. ``retries``, ``crc_errors`` and ``stale``, replies to something
    asked earlier, count since the start."""

    def __init__(self, port: Port, margin_ns: int, attempts: int) -> None:
        self._port = port
        self._margin_ns = margin_ns + _EEPROM_NS
        self._attempts = attempts
        self._parser = PacketParser()
        self._buffer = bytearray(4096)
        self.retries = self.stale = 0

    @property
    def crc_errors(self) -> int:
        return self._parser.crc_errors

    def ping(self, motor_id: int) -> tuple[int, int] | None:
        """(model number, firmware), or None when no whole reply came in any attempt."""
        reply = self._ask(motor_id, Instruction.PING, b"", 3)
        if reply is None or len(reply.params) != 3:
            return None
        return int.from_bytes(reply.params[:2], "little"), reply.params[2]

    def read(self, motor: MotorSpec, name: str) -> int:
        """Value of register ``name``. Raises MotorError."""
        register = motor.model[name]
        return register.decode(self.read_bytes(motor, register.address, register.size))

    def read_bytes(self, motor: MotorSpec, address: int, count: int) -> bytes:
        """``count`` bytes from ``address``. Raises MotorError."""
        params = address.to_bytes(2, "little") + count.to_bytes(2, "little")
        reply = self._require(motor, Instruction.READ, params, count)
        if len(reply.params) != count:
            raise MotorError(
                f"{motor} on {self._port.path} refuses to read {count} bytes at {address}:"
                f" {describe_status(reply.error)}",
                "check its firmware with `ratchet doctor`",
            )
        return reply.params

    def write(self, motor: MotorSpec, name: str, value: int) -> None:
        """Write register ``name``. Raises MotorError when the motor refuses."""
        register = motor.model[name]
        self.write_bytes(motor, register.address, register.encode(value), f"{name} = {value}")

    def write_bytes(self, motor: MotorSpec, address: int, data: bytes, what: str) -> None:
        """Write ``data`` at ``address``; ``what`` names it in the error. Raises MotorError."""
        reply = self._require(motor, Instruction.WRITE, address.to_bytes(2, "little") + data, 0)
        if reply.error & 0x7F:
            raise MotorError(
                f"{motor} on {self._port.path} refuses {what}: {describe_status(reply.error)}",
                "check it with `ratchet doctor`",
            )

    def broadcast_write(self, motors: tuple[MotorSpec, ...], name: str, value: int) -> None:
        """Write the same value to all at once with one sync write, which nobody acknowledges."""
        register = motors[0].model[name]
        params = register.address.to_bytes(2, "little") + register.size.to_bytes(2, "little")
        for motor in motors:
            params += bytes((motor.id,)) + register.encode(value)
        self._port.send(build(BROADCAST_ID, Instruction.SYNC_WRITE, params))

    def _require(self, motor: MotorSpec, instruction: int, params: bytes, count: int) -> Packet:
        reply = self._ask(motor.id, instruction, params, count)
        if reply is None:
            raise self.no_answer(motor)
        return reply

    def no_answer(self, motor: MotorSpec) -> MotorError:
        """The error for a motor that stays silent or garbled."""
        garbled = motor.id in self._parser.rejected
        what = "answers with damaged packets" if garbled else "does not answer"
        remedy = (
            "check its cable, and that no two motors share the id"
            if garbled
            else "check its power and cable, or its id with `ratchet doctor`"
        )
        return MotorError(f"{motor} {what} on {self._port.path} at {self._port.baud} baud", remedy)

    def _ask(self, motor_id: int, instruction: int, params: bytes, count: int) -> Packet | None:
        packet = build(motor_id, instruction, params)
        wire_ns = (len(packet) + OVERHEAD + STATUS_OVERHEAD + count + count // 3) * self._port.byte_ns
        for attempt in range(self._attempts):
            self.retries += attempt > 0
            deadline_ns = self._port.send(packet) + round(wire_ns) + self._margin_ns
            reply = self._await(motor_id, count, deadline_ns)
            if reply is not None:
                if attempt:
                    self._listen_until_quiet()
                return reply
        return None

    def _await(self, motor_id: int, count: int, deadline_ns: int) -> Packet | None:
        """The first reply of ``motor_id`` that can be the one: ``count`` bytes, or none and an error."""
        self._parser.clear()
        rejected: list[int] = []
        while time.monotonic_ns() < deadline_ns:
            received = self._port.receive_into(memoryview(self._buffer), deadline_ns)
            for packet in self._parser.feed(bytes(self._buffer[:received])):
                refused = not packet.params and packet.error & 0x7F
                if packet.instruction != Instruction.STATUS:
                    continue
                if packet.id == motor_id and (len(packet.params) == count or refused):
                    return packet
                self.stale += 1
            rejected += self._parser.rejected
        self._parser.rejected = rejected
        return None

    def _listen_until_quiet(self) -> None:
        """Let replies to the attempts that were given up pass by."""
        while self._port.receive_into(memoryview(self._buffer), time.monotonic_ns() + self._margin_ns):
            self.stale += 1
