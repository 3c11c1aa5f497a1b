"""Memory that a run has once had stays with it until the run ends.

By default every large tensor is a mapping of its own, given back to the system when it is freed: a step
of ACT then has thirty thousand pages cleared for it and mapped anew, three per cent of its time. A small
network gains nothing by keeping them, and would hold half as much memory again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from torch import nn

# Of glibc's malloc.h; other libraries have no such switches and are left alone. Once one is set glibc no
# longer adapts the thresholds, so at the end they are where it would have let them grow to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_TRIM_GROWN, _MMAP_GROWN, _MMAP_DEFAULT = 64 * 2**20, 32 * 2**20, 65536
_NEVER = 2**31 - 1
_LARGE = 10_000_000  # parameters


@contextlib.contextmanager
def memory_kept(model: nn.Module) -> Iterator[None]:
    """While it lasts, a large ``model`` uses again what was freed; at the end the system gets it back."""
    library = ctypes.CDLL(None)
    large = sum(p.numel() for p in model.parameters()) >= _LARGE
    if not (large and hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _MMAP_DEFAULT)
        library.mallopt(_TRIM_THRESHOLD, _TRIM_GROWN)
        library.mallopt(_MMAP_THRESHOLD, _MMAP_GROWN)
        library.malloc_trim(0)
