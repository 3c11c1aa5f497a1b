"""The motors of one bus answering instruction packets: who replies what, in which order.

Pure: packets in, replies out, no time spent. A reply is a list of pieces, one a motor, because
drop and corruption strike pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hal.bench.emulated_motor import EmulatedMotor
from hal.dynamixel.errors import StatusError
from hal.dynamixel.packet import (
    BROADCAST_ID,
    FAST_OVERHEAD,
    Instruction,
    Packet,
    build_fast_status,
    build_status,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one motor puts on the wire, after its return delay."""

    motor_id: int
    data: bytes
    delay_us: int


class EmulatedBus:
    """Dispatches instructions to motors. ``silent`` ids neither hear nor answer; ``twin`` shares an id
    with another motor."""

    def __init__(self, motors: Sequence[EmulatedMotor]) -> None:
        self.motors = list(motors)
        self.silent: frozenset[int] = frozenset()
        self.twin: EmulatedMotor | None = None
        self._handlers: dict[int, Callable[[Packet, list[EmulatedMotor], int], list[Piece]]] = {
            Instruction.PING: self._ping,
            Instruction.READ: self._read,
            Instruction.WRITE: self._write,
            Instruction.REG_WRITE: self._reg_write,
            Instruction.ACTION: self._action,
            Instruction.REBOOT: self._reboot,
            Instruction.SYNC_READ: self._sync_read,
            Instruction.FAST_SYNC_READ: self._sync_read,
            Instruction.SYNC_WRITE: self._sync_write,
            Instruction.BULK_READ: self._bulk_read,
            Instruction.FAST_BULK_READ: self._bulk_read,
            Instruction.BULK_WRITE: self._bulk_write,
        }

    def handle(self, packet: Packet, baud: int | None, now_ns: int) -> list[Piece]:
        """The pieces of the reply to ``packet``, sent at ``baud`` (None: any is understood)."""
        listening = [
            m
            for m in (*self.motors, *([] if self.twin is None else [self.twin]))
            if m.id not in self.silent and m.present(now_ns) and (baud is None or m.baud == baud)
        ]
        for motor in listening:
            motor.heard(now_ns)
        addressed = [m for m in listening if packet.id in (m.id, BROADCAST_ID)]
        handler = self._handlers.get(packet.instruction)
        if handler is None:
            return self._acknowledge(packet, [(m, StatusError.INSTRUCTION) for m in addressed])
        return handler(packet, addressed, now_ns)

    def damaged(self, motor_id: int) -> list[Piece]:
        """The reply of the motor that an instruction with a wrong CRC was meant for."""
        return [
            _status(m, StatusError.CRC) for m in self.motors if m.id == motor_id and m.id not in self.silent
        ]

    def _acknowledge(self, packet: Packet, results: list[tuple[EmulatedMotor, int]]) -> list[Piece]:
        if packet.id == BROADCAST_ID:
            return []
        return [_status(m, error) for m, error in results if m.peek("Status_Return_Level") == 2]

    def _ping(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        ordered = sorted(motors, key=lambda m: m.id)
        return [_status(m, 0, m.model.number.to_bytes(2, "little") + bytes((m.firmware,))) for m in ordered]

    def _read(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        if packet.id == BROADCAST_ID:
            return []
        if len(packet.params) != 4:
            return self._acknowledge(packet, [(m, StatusError.DATA_LENGTH) for m in motors])
        address, count = _words(packet.params)
        return [_status(m, *m.read(address, count)) for m in motors if m.peek("Status_Return_Level") >= 1]

    def _write(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        address = int.from_bytes(packet.params[:2], "little")
        # The status carries the id and level from before the write took effect.
        before = [(m.id, m.peek("Return_Delay_Time"), m.peek("Status_Return_Level")) for m in motors]
        errors = [m.write(address, packet.params[2:]) | m.alert for m in motors]
        if packet.id == BROADCAST_ID:
            return []
        rows = zip(before, errors, strict=True)
        return [
            Piece(i, build_status(i, error), 2 * delay) for (i, delay, level), error in rows if level == 2
        ]

    def _reg_write(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        address = int.from_bytes(packet.params[:2], "little")
        return self._acknowledge(packet, [(m, m.register_write(address, packet.params[2:])) for m in motors])

    def _action(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        return self._acknowledge(packet, [(m, m.action()) for m in motors])

    def _reboot(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        replies = self._acknowledge(packet, [(m, StatusError.OK) for m in motors])
        for motor in motors:
            motor.reboot(now_ns)
        return replies

    def _sync_read(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        if len(packet.params) < 5 or packet.id != BROADCAST_ID:
            return []
        address, count = _words(packet.params)
        wanted = [(motor_id, address, count) for motor_id in packet.params[4:]]
        return self._chain(wanted, motors, packet.instruction == Instruction.FAST_SYNC_READ)

    def _bulk_read(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        if packet.id != BROADCAST_ID or not packet.params or len(packet.params) % 5:
            return []
        rows = [packet.params[i : i + 5] for i in range(0, len(packet.params), 5)]
        wanted = [(row[0], *_words(row[1:])) for row in rows]
        return self._chain(wanted, motors, packet.instruction == Instruction.FAST_BULK_READ)

    def _chain(
        self, wanted: list[tuple[int, int, int]], motors: list[EmulatedMotor], fast: bool
    ) -> list[Piece]:
        """Replies in the order asked; where two motors share an id their bits collide."""
        by_id = {m.id: m for m in motors if m is not self.twin}
        pieces = _answers(wanted, by_id, fast)
        if self.twin is None or self.twin not in motors:
            return pieces
        others = _answers(wanted, {**by_id, self.twin.id: self.twin}, fast)
        both = [collision(a, b) if a.data != b.data else a for a, b in zip(pieces, others, strict=False)]
        return both + others[len(both) :]

    def _sync_write(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        if len(packet.params) < 4:
            return []
        address, count = _words(packet.params)
        for at in range(4, len(packet.params) - count, count + 1):
            for motor in motors:
                if motor.id == packet.params[at]:
                    motor.write(address, packet.params[at + 1 : at + 1 + count])
        return []

    def _bulk_write(self, packet: Packet, motors: list[EmulatedMotor], now_ns: int) -> list[Piece]:
        by_id = {m.id: m for m in motors}
        at = 0
        while at + 5 < len(packet.params):
            address, count = _words(packet.params[at + 1 : at + 5])
            motor, data = by_id.get(packet.params[at]), packet.params[at + 5 : at + 5 + count]
            if motor is not None and len(data) == count:
                motor.write(address, data)
            at += 5 + count
        return []


def collision(a: Piece, b: Piece) -> Piece:
    """Two motors talk at once: on the open-drain line their bits AND together."""
    overlap = min(len(a.data), len(b.data))
    data = bytes(x & y for x, y in zip(a.data, b.data, strict=False))
    return Piece(a.motor_id, data + max(a.data, b.data, key=len)[overlap:], a.delay_us)


def _answers(wanted: list[tuple[int, int, int]], by_id: dict[int, EmulatedMotor], fast: bool) -> list[Piece]:
    """Each motor waits for the one before it, so the first that stays silent silences the rest."""
    answers: list[tuple[EmulatedMotor, int, bytes]] = []
    for motor_id, address, count in wanted:
        motor = by_id.get(motor_id)
        if motor is None or motor.peek("Status_Return_Level") < 1:
            break
        error, data = motor.read(address, count)
        answers.append((motor, error, data))
    if not fast:
        return [_status(m, error, data) for m, error, data in answers]
    parts = [(error | m.alert, m.id, data) for m, error, data in answers]
    asked = sum(count + FAST_OVERHEAD for _, _, count in wanted)
    pieces = build_fast_status(parts, asked)
    delays = [_delay_us(answers[0][0])] + [0] * (len(answers) - 1) if answers else []
    return [Piece(p[1], raw, d) for p, raw, d in zip(parts, pieces, delays, strict=True)]


def _words(params: bytes) -> tuple[int, int]:
    return int.from_bytes(params[:2], "little"), int.from_bytes(params[2:4], "little")


def _delay_us(motor: EmulatedMotor) -> int:
    return 2 * motor.peek("Return_Delay_Time")


def _status(motor: EmulatedMotor, error: int, data: bytes = b"") -> Piece:
    return Piece(motor.id, build_status(motor.id, error | motor.alert, data), _delay_us(motor))
