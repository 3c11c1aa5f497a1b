"""CRC-16 of Dynamixel Protocol 2.0: polynomial 0x8005 (IBM), initial value 0, no reflection."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_POLYNOMIAL = 0x8005


def _make_table() -> npt.NDArray[np.uint16]:
    table = np.zeros(256, dtype=np.uint16)
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ _POLYNOMIAL if crc & 0x8000 else crc << 1) & 0xFFFF
        table[byte] = crc
    return table


_TABLE = _make_table()


@numba.njit(cache=True, nogil=True)
def crc16(data: Bytes, start: int, stop: int, crc: int) -> int:
    """CRC over ``data[start:stop]`` uint8, continued from ``crc`` (0 for a new packet)."""
    for i in range(start, stop):
        crc = ((crc << 8) & 0xFFFF) ^ int(_TABLE[((crc >> 8) ^ int(data[i])) & 0xFF])
    return crc


def crc16_bytes(data: bytes, crc: int = 0) -> int:
    """``crc16`` of a bytes object."""
    return int(crc16(np.frombuffer(data, dtype=np.uint8), 0, len(data), crc))
