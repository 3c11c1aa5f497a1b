"""Dynamixel Protocol 2.0 packets: build, find, take apart.

Layout (ROBOTIS e-Manual, "Protocol 2.0")::

    FF FF FD 00 | id | length lo hi | instruction | parameters … | crc lo hi

``length`` counts instruction, parameters and CRC after byte stuffing: wherever instruction and
parameters contain FF FF FD, another FD follows. A status packet has instruction 0x55 and its
first parameter is the error byte (bit 7: hardware alert; bits 0–6: error number). The reply to
a fast read is one status packet of id 0xFE to which each motor adds error, id, data and a CRC
over everything so far; it is not stuffed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numba
import numpy as np

from hal.dynamixel.crc import Bytes, crc16, crc16_bytes
from hal.errors import ProtocolError

HEADER = b"\xff\xff\xfd\x00"
BROADCAST_ID = 0xFE
MAX_ID = 252
ALERT_BIT = 0x80
MAX_PACKET = 1024
"""Longest packet accepted or built, bytes: the length field is checked against it before use."""

_PREFIX = 7  # header, id, length
_STATUS = 0x55
OVERHEAD = 10
"""Bytes of an instruction packet without parameters."""
STATUS_OVERHEAD = 11
"""Bytes of a status packet without parameters."""
FAST_OVERHEAD = 4
"""Bytes each motor adds to its data in a fast reply: error, id, CRC."""


class Instruction(IntEnum):
    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93
    FAST_BULK_READ = 0x9A


class Found(IntEnum):
    """What ``find_packet`` came upon."""

    NEED_MORE = 0
    PACKET = 1
    BAD_CRC = 2
    BAD_LENGTH = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet with its stuffing removed. ``params`` of a status packet begin after the error."""

    id: int
    instruction: int
    params: bytes
    error: int = 0

    @property
    def alert(self) -> bool:
        """The motor reports a hardware error (read register Hardware_Error_Status)."""
        return bool(self.error & ALERT_BIT)


def build(motor_id: int, instruction: int, params: bytes = b"") -> bytes:
    """An instruction packet, stuffed, with CRC. Raises ProtocolError when it would be too long."""
    body = (bytes((instruction,)) + params).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    length = len(body) + 2
    if _PREFIX + length > MAX_PACKET:
        raise ProtocolError(
            f"a packet of {_PREFIX + length} bytes exceeds {MAX_PACKET}", "read or write less"
        )
    head = HEADER + bytes((motor_id, length & 0xFF, length >> 8)) + body
    return head + crc16_bytes(head).to_bytes(2, "little")


def build_status(motor_id: int, error: int, params: bytes = b"") -> bytes:
    """A status packet as a motor sends it."""
    return build(motor_id, _STATUS, bytes((error,)) + params)


def build_fast_status(parts: list[tuple[int, int, bytes]], asked_bytes: int) -> list[bytes]:
    """The chained reply to a fast read, one piece a motor, from ``parts`` = (error, id, data).

    ``asked_bytes`` is the data length of all motors asked plus FAST_OVERHEAD each: a chain that
    breaks off (fewer parts) still announces the full length, as the first motor does on the wire.
    """
    length = asked_bytes + 1
    pieces: list[bytes] = []
    head = HEADER + bytes((BROADCAST_ID, length & 0xFF, length >> 8, _STATUS))
    crc = 0
    for error, motor_id, data in parts:
        body = head + bytes((error, motor_id)) + data
        crc = crc16_bytes(body, crc)
        tail = crc.to_bytes(2, "little")
        pieces.append(body + tail)
        head, crc = b"", crc16_bytes(tail, crc)
    return pieces


@numba.njit(cache=True, nogil=True)
def find_packet(buf: Bytes, start: int, stop: int) -> tuple[int, int, int]:
    """Look for a packet in ``buf[start:stop]`` uint8. Returns (Found, offset, size in bytes).

    NEED_MORE: nothing before ``offset`` is of use, a packet may begin there. BAD_CRC and
    BAD_LENGTH: a header at ``offset`` is not to be trusted; search on from ``offset + 1``.
    """
    i = start
    while i + 3 < stop and not (
        buf[i] == 0xFF and buf[i + 1] == 0xFF and buf[i + 2] == 0xFD and buf[i + 3] == 0x00
    ):
        i += 1
    if i + _PREFIX > stop:
        return 0, i, 0
    length = int(buf[i + 5]) | (int(buf[i + 6]) << 8)
    if length < 3 or length > MAX_PACKET - _PREFIX:
        return 3, i, 0
    size = _PREFIX + length
    if i + size > stop:
        return 0, i, size
    crc = int(buf[i + size - 2]) | (int(buf[i + size - 1]) << 8)
    if crc16(buf, i, i + size - 2, 0) != crc:
        return 2, i, size
    return 1, i, size


def take_apart(raw: bytes) -> Packet:
    """A Packet from the bytes of one whole packet whose CRC has been checked."""
    body = raw[_PREFIX:-2]
    if raw[4] != BROADCAST_ID or body[0] != _STATUS:
        body = body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
    if body[0] != _STATUS:
        return Packet(raw[4], body[0], body[1:])
    if len(body) < 2:
        raise ProtocolError(f"a status packet of motor {raw[4]} has no error byte", "check the cable")
    return Packet(raw[4], _STATUS, body[2:], body[1])


class PacketParser:
    """Packets out of a byte stream that may be cut anywhere, damaged or padded with noise.

    Holds at most ``2 * MAX_PACKET`` bytes whatever arrives. ``crc_errors`` and ``bad_lengths``
    count what was rejected; ``rejected`` has the id byte of each packet with a wrong CRC since
    the last ``feed``.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.crc_errors = 0
        self.bad_lengths = 0
        self.rejected: list[int] = []

    def feed(self, data: bytes) -> list[Packet]:
        """Add ``data``; return the packets that are now complete."""
        self.rejected = []
        packets: list[Packet] = []
        for at in range(0, len(data), MAX_PACKET):
            self._buffer += data[at : at + MAX_PACKET]
            packets += self._drain()
        return packets

    def clear(self) -> None:
        """Forget what has arrived so far."""
        self._buffer.clear()

    def _drain(self) -> list[Packet]:
        packets: list[Packet] = []
        raw = bytes(self._buffer)
        view = np.frombuffer(raw, dtype=np.uint8)
        at, stop = 0, len(raw)
        while True:
            found, offset, size = find_packet(view, at, stop)
            if found == Found.NEED_MORE:
                del self._buffer[:offset]
                return packets
            at = offset + 1
            if found == Found.BAD_CRC:
                self.crc_errors += 1
                self.rejected.append(raw[offset + 4])
            elif found == Found.BAD_LENGTH or (raw[offset + 7] == _STATUS and size < STATUS_OVERHEAD):
                self.bad_lengths += 1
            else:
                packets.append(take_apart(raw[offset : offset + size]))
                at = offset + size
