"""An encoder does not put this process before a moving arm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from episodes.lerobot.encode import VideoFormat, encode_video
from episodes.urgency import urgency, urgency_kept


def test_a_video_is_encoded_by_threads_that_are_no_more_urgent_than_we_are(tmp_path: Path) -> None:
    before = urgency()
    seen: list[tuple[int, int]] = []

    def pictures() -> Iterator[npt.NDArray[np.uint8]]:
        for value in range(6):
            yield np.full((64, 64, 3), value * 30, np.uint8)
            seen.extend(urgency(int(thread)) for thread in os.listdir("/proc/self/task"))

    assert encode_video(tmp_path / "a.mp4", 10, VideoFormat("av1"), [pictures()]) == 6
    assert len(seen) > 6 * 2, "the encoder has threads"
    assert set(seen) == {before}
    assert urgency() == before


def test_what_was_changed_meanwhile_is_put_back() -> None:
    before = urgency()
    try:
        with urgency_kept():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            assert urgency() == (os.SCHED_FIFO, 1)
    except PermissionError:
        pytest.skip("real-time priority is refused here")
    assert urgency() == before
