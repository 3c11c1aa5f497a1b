"""Replies to a read of many motors, taken from the receive buffer as they arrive.

Both parsers start over from the first byte at every call: a cycle's replies are some 200 bytes
and a pass takes about a microsecond, so there is no state to get wrong. A motor's data is
stored only once its CRC has been checked.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from hal.dynamixel.crc import Bytes, crc16
from hal.dynamixel.packet import BROADCAST_ID, FAST_OVERHEAD

Counts = npt.NDArray[np.int64]

_STATUS = 0x55


@numba.njit(cache=True, nogil=True)
def _is_status(buf: Bytes, i: int, stop: int) -> bool:
    if i + 8 > stop or buf[i] != 0xFF or buf[i + 1] != 0xFF or buf[i + 2] != 0xFD:
        return False
    return buf[i + 3] == 0x00 and buf[i + 7] == _STATUS


@numba.njit(cache=True, nogil=True)
def _unstuff(buf: Bytes, start: int, stop: int, out: Bytes) -> int:
    """Copy ``buf[start:stop]`` without stuffing into ``out``; -1 when it is longer than that."""
    n = 0
    for i in range(start, stop):
        if (
            i - start >= 3
            and buf[i] == 0xFD
            and buf[i - 1] == 0xFD
            and buf[i - 2] == 0xFF
            and buf[i - 3] == 0xFF
        ):
            continue
        if n == out.shape[0]:
            return -1
        out[n] = buf[i]
        n += 1
    return n if n == out.shape[0] else -1


@numba.njit(cache=True, nogil=True)
def parse_status_replies(
    buf: Bytes, stop: int, ids: Bytes, blocks: Bytes, errors: Bytes, fresh: npt.NDArray[np.bool_], bad: Counts
) -> int:
    """Single status packets, as sync and bulk reads return them.

    ``ids`` uint8 (n,), ``blocks`` uint8 (n, size), ``errors`` uint8 (n,), ``fresh`` bool (n,):
    filled for each motor whose reply is whole. ``bad`` int64 (n,): replies of that motor with a
    wrong CRC in this buffer. Returns how many motors have answered, data or error; data of another
    size answers something that was asked before.
    """
    size = blocks.shape[1]
    answered = 0
    fresh[:] = False
    bad[:] = 0
    scratch = np.empty(size, dtype=np.uint8)
    i = 0
    while i + 11 <= stop:
        length = int(buf[i + 5]) | (int(buf[i + 6]) << 8)
        # Stuffing adds at most a third; a longer packet is damage, not a reply to this read.
        if not _is_status(buf, i, stop) or length < 4 or length > 4 + size + size // 3 + 1:
            i += 1
            continue
        end = i + 7 + length
        motor = -1
        for m in range(ids.shape[0]):
            if ids[m] == buf[i + 4]:
                motor = m
        if end > stop or motor < 0:
            i += 1
            continue
        crc = int(buf[end - 2]) | (int(buf[end - 1]) << 8)
        if crc16(buf, i, end - 2, 0) != crc:
            bad[motor] += 1
            i += 1
            continue
        if _unstuff(buf, i + 9, end - 2, scratch) == size:
            blocks[motor] = scratch
            fresh[motor] = True
        if fresh[motor] or length == 4:
            errors[motor] = buf[i + 8]
            answered += 1
        i = end
    return answered


@numba.njit(cache=True, nogil=True)
def parse_fast_reply(
    buf: Bytes, stop: int, ids: Bytes, blocks: Bytes, errors: Bytes, fresh: npt.NDArray[np.bool_], bad: Counts
) -> int:
    """The chained status packet of a fast sync or fast bulk read, motors in the order of ``ids``.

    Arguments as ``parse_status_replies``. Each motor's CRC covers all bytes before it, so the
    first damaged or missing motor ends what can be trusted.
    """
    size = blocks.shape[1]
    count = ids.shape[0]
    length = 1 + count * (size + FAST_OVERHEAD)
    fresh[:] = False
    bad[:] = 0
    for i in range(stop - 8):
        if not _is_status(buf, i, stop) or buf[i + 4] != BROADCAST_ID:
            continue
        if (int(buf[i + 5]) | (int(buf[i + 6]) << 8)) != length:
            continue
        crc = crc16(buf, i, i + 8, 0)
        at = i + 8
        for m in range(count):
            end = at + 2 + size
            if end + 2 > stop:
                return m
            crc = crc16(buf, at, end, crc)
            told = int(buf[end]) | (int(buf[end + 1]) << 8)
            if buf[at + 1] != ids[m] or told != crc:
                bad[m] = 1
                return m
            crc = crc16(buf, end, end + 2, crc)
            errors[m] = buf[at]
            blocks[m] = buf[at + 2 : end]
            fresh[m] = True
            at = end + 2
        return count
    return 0
