"""Capture times in a LeRobot set, as Ratchet's export writes them.

LeRobot's ``timestamp`` is index / fps. What really was is kept in features of their own: for the rows
``capture_time_ns`` (int64, from the episode's first row) and ``capture_seq``; for each camera the same with
its name behind a dot, and ``repeated.<camera>``: this row shows the picture of the row before. None of the
names begins with ``observation`` or ``action``, so that no policy of LeRobot's takes them for an input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from episodes.errors import ImportRefusedError
from episodes.lerobot.layout import Dataset
from episodes.lerobot.tables import to_numbers

TIME, SEQ, REPEATED = "capture_time_ns", "capture_seq", "repeated"
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def is_capture(key: str) -> bool:
    """Whether a feature holds capture times and not data."""
    return key in (TIME, SEQ) or key.split(".")[0] in (TIME, SEQ, REPEATED)


class Capture:
    """The capture features of one episode's rows."""

    def __init__(self, table: Any, dataset: Dataset) -> None:
        features = [f for k, f in dataset.features.items() if is_capture(k) and k in table.column_names]
        self._columns = {f.key: to_numbers(table[f.key], f) for f in features}

    def of_ticks(self, t_ns: _Ints, seq: _Ints) -> tuple[_Ints, _Ints, _Bools]:
        """Time in ns, sequence number, repeated, for each row; the given ones where there are none."""
        return self._of("", t_ns, seq)

    def of_camera(self, camera: str, t_ns: _Ints, seq: _Ints) -> tuple[_Ints, _Ints, _Bools]:
        """The same for the pictures of ``camera``."""
        own = f".{camera}" if f"{TIME}.{camera}" in self._columns else ""
        return self._of(own, t_ns, seq)

    def _of(self, own: str, t_ns: _Ints, seq: _Ints) -> tuple[_Ints, _Ints, _Bools]:
        n = len(t_ns)
        times = self._columns.get(TIME + own, t_ns)
        numbers = self._columns.get(SEQ + own, seq)
        repeated = self._columns.get(REPEATED + own, np.zeros(n, bool))
        if [(a.dtype.kind, a.shape) for a in (times, numbers, repeated)] != [(k, (n,)) for k in "iib"]:
            raise ImportRefusedError(
                f"{TIME}{own}, {SEQ}{own} or {REPEATED}{own} is not as Ratchet writes it",
                "rename the feature",
            )
        return times, numbers, repeated
