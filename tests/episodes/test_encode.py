"""What an encoder may not do to a video: leave a frame out, or let frames out in another order."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from episodes.errors import StoreError
from episodes.lerobot.encode import VideoFormat, encode_video


class Reordering(VideoFormat):
    """H.264 with B frames: packets come in another order than pictures."""

    def options(self) -> dict[str, str]:
        return super().options() | {"bf": "2", "b_strategy": "0"}


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    return [np.full((64, 64, 3), value * 5, np.uint8) for value in range(count)]


@pytest.mark.parametrize(
    "form", [VideoFormat("av1"), VideoFormat("h264"), VideoFormat("av1", group=30)], ids=str
)
def test_every_picture_of_every_episode_is_there_in_order(form: VideoFormat, tmp_path: Path) -> None:
    assert encode_video(tmp_path / "a.mp4", 10, form, [pictures(20), pictures(7)]) == 27
    with av.open(str(tmp_path / "a.mp4")) as container:
        levels = [int(f.to_ndarray(format="rgb24").mean()) for f in container.decode(video=0)]
    wanted = [value * 5 for value in (*range(20), *range(7))]
    assert np.abs(np.array(levels) - wanted).max() <= 2


def test_frames_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the encoder gave frame \d where frame 1 was due"):
        encode_video(tmp_path / "a.mp4", 10, Reordering("h264", group=12), [pictures(12)])


def test_a_file_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreError, match="/dev/full could not be encoded: No space left on device; see"):
        encode_video(Path("/dev/full"), 10, VideoFormat("h264"), [pictures(3)])
