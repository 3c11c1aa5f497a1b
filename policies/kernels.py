"""Loops over memory that training on a processor does in one pass where torch takes several.

Random bits are Philox4×32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
function of key and place: threads share the work as they like, and the way back draws a mask again
instead of keeping it. Kernels release the interpreter and take the range of blocks they are to do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch

LEVELS = 65536  # of the 16 bits that decide about a value
BLOCK = 256  # values: what is drawn for a block stays in the first cache
_LANES = BLOCK // 8  # one draw of 128 bits is for eight values
COLUMNS = 128  # of a block whose columns are summed
_LEAST = 65536  # values a thread is worth waking for


def spread(kernel: Callable[..., None], blocks: int, first: Any, *others: Any) -> None:
    """``kernel(first, *others, from, to)`` over all ``blocks``, by as many threads as torch computes with.

    Fewer where ``first``, the array that is worked on, is small.
    """
    parts = max(1, min(torch.get_num_threads(), blocks, first.size // _LEAST))
    ends = [blocks * part // parts for part in range(parts + 1)]
    elsewhere = [_pool().submit(kernel, first, *others, *ends[i : i + 2]) for i in range(1, parts)]
    kernel(first, *others, ends[0], ends[1])
    for part in elsewhere:
        part.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=256, thread_name_prefix="kernel")


@numba.njit(inline="always")
def _philox(counter: int, key: int, drawn: Any) -> None:
    """Into ``drawn`` uint32 (4 · _LANES,): eight numbers of 16 bits for each counter from ``counter`` on."""
    start, low = np.uint64(counter), np.uint32(key)
    high = np.uint32(np.uint64(key) >> np.uint64(32))
    for lane in range(_LANES):
        at = start + np.uint64(lane)
        c0, c1 = np.uint32(at), np.uint32(at >> np.uint64(32))
        c2, c3 = np.uint32(0), np.uint32(0)
        k0, k1 = low, high
        for _ in range(10):
            p, q = np.uint64(c0) * np.uint64(0xD2511F53), np.uint64(c2) * np.uint64(0xCD9E8D57)
            c0, c2 = np.uint32(q >> np.uint64(32)) ^ c1 ^ k0, np.uint32(p >> np.uint64(32)) ^ c3 ^ k1
            c1, c3 = np.uint32(q), np.uint32(p)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        drawn[lane], drawn[lane + _LANES] = c0, c1
        drawn[lane + 2 * _LANES], drawn[lane + 3 * _LANES] = c2, c3


@numba.njit(cache=True, nogil=True)
def drop(x: Any, out: Any, key: int, level: int, scale: float, first: int, last: int) -> None:
    """``out`` = ``x`` · ``scale`` where the draw is at least ``level``, else 0; both float32 (N,)."""
    drawn = np.empty(4 * _LANES, np.uint32)
    draws = drawn.view(np.uint16)
    least, factor = np.uint16(level), np.float32(scale)
    for block in range(first, last):
        _philox(block * _LANES, key, drawn)
        source, target = x[block * BLOCK : (block + 1) * BLOCK], out[block * BLOCK : (block + 1) * BLOCK]
        for i in range(source.size):
            target[i] = source[i] * factor if draws[i] >= least else np.float32(0)


@numba.njit(cache=True, nogil=True)
def relu_drop(x: Any, bias: Any, key: int, level: int, scale: float, first: int, last: int) -> None:
    """``x`` float32 (R, C) becomes `drop` of relu(x + ``bias`` (C,)); the blocks of a row are its own."""
    drawn = np.empty(4 * _LANES, np.uint32)
    draws = drawn.view(np.uint16)
    least, factor = np.uint16(level), np.float32(scale)
    across = (x.shape[1] + BLOCK - 1) // BLOCK
    for block in range(first, last):
        _philox(block * _LANES, key, drawn)
        row, at = block // across, block % across * BLOCK
        values, added = x[row, at : at + BLOCK], bias[at : at + BLOCK]
        for i in range(values.size):
            value = values[i] + added[i]
            # Not a number stays what it is, so that whoever watches the loss sees it.
            off = (value <= np.float32(0)) | (draws[i] < least)
            values[i] = np.float32(0) if off else value * factor


@numba.njit(cache=True, nogil=True)
def relu_drop_back(g: Any, kept: Any, scale: float, sums: Any, first: int, last: int) -> None:
    """The gradient ``g`` (R, C) of what `relu_drop` made ``kept`` becomes that of its x.

    ``sums`` (C,) are over R. Blocks are of columns, so that a sum is one thread's.
    """
    factor = np.float32(scale)
    for block in range(first, last):
        begin, end = block * COLUMNS, (block + 1) * COLUMNS
        total = sums[begin:end]
        total[:] = np.float32(0)
        for row in range(g.shape[0]):
            values, mask = g[row, begin:end], kept[row, begin:end]
            for i in range(total.size):
                value = np.float32(0) if mask[i] <= np.float32(0) else values[i] * factor
                values[i] = value
                total[i] += value
