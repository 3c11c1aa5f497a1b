"""Videos put end to end without libavformat are what libavformat would have made; odd ones go to it."""

from __future__ import annotations

import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lerobot_helpers import H264, frame

from episodes.errors import ImportRefusedError
from episodes.lerobot.encode import VideoFormat, encode_video
from episodes.lerobot.mp4 import Track, read_track
from episodes.lerobot.mp4_join import join
from episodes.lerobot.remux import Joiner, put_end_to_end, video_facts


def packets(path: Path) -> list[tuple[bytes, float, bool]]:
    """Compressed frames, when each is shown, and whether decoding may begin there."""
    with av.open(str(path)) as container:
        tick = float(container.streams.video[0].time_base or 0)
        found = [p for p in container.demux(video=0) if p.size]
        return [(bytes(p), round((p.pts or 0) * tick, 9), p.is_keyframe) for p in found]


def videos(folder: Path, form: VideoFormat = H264, lengths: tuple[int, ...] = (5, 7, 4)) -> list[Path]:
    """Some videos of frames that tell where they belong."""
    out = []
    for number, length in enumerate(lengths):
        out.append(folder / f"{number}.mp4")
        encode_video(out[-1], 10, form, [[frame(number, r) for r in range(length)]])
    return out


def reordered(path: Path, count: int = 8) -> Path:
    """A video whose frames are decoded in another order than shown."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"bf": "2", "g": "8", "b-pyramid": "none"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for row in range(count):
            picture = av.VideoFrame.from_ndarray(frame(row * 5, row), "rgb24")
            picture.pts, picture.time_base = row, Fraction(1, 10)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


def track_of(path: Path) -> Track:
    """The track of a file that is known to be plain."""
    track = read_track(path)
    assert track is not None
    return track


@pytest.mark.parametrize("form", [H264, VideoFormat("av1", 40, 2)], ids=["h264", "av1"])
def test_the_same_packets_as_libavformat_at_the_same_times(tmp_path: Path, form: VideoFormat) -> None:
    sources = videos(tmp_path, form)
    join(tmp_path / "mine.mp4", [(p, track_of(p)) for p in sources], 10)
    with Joiner(tmp_path / "theirs.mp4", 10) as joiner:
        for source in sources:
            joiner.append(source)
    mine = packets(tmp_path / "mine.mp4")
    assert mine == packets(tmp_path / "theirs.mp4")
    assert [t for _, t, _ in mine] == [round(i / 10, 9) for i in range(16)]
    with av.open(str(tmp_path / "mine.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (16, 10, 48, 32)
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    want = [frame(n, r) for n, length in enumerate((5, 7, 4)) for r in range(length)]
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(decoded, want, strict=True)) < 8
    with av.open(str(tmp_path / "mine.mp4")) as container:
        container.seek(
            int(1.1 / float(container.streams.video[0].time_base or 1)), stream=container.streams[0]
        )
        assert next(container.decode(video=0)).time <= 1.1, "a key frame is found"


def test_what_was_joined_can_be_joined_again(tmp_path: Path) -> None:
    sources = videos(tmp_path)
    put_end_to_end(tmp_path / "one.mp4", sources[:2], 10)
    assert put_end_to_end(tmp_path / "two.mp4", [tmp_path / "one.mp4", sources[2]], 10) == 16
    put_end_to_end(tmp_path / "three.mp4", sources, 10)
    assert packets(tmp_path / "two.mp4") == packets(tmp_path / "three.mp4")


def test_reordered_frames_are_left_to_libavformat(tmp_path: Path) -> None:
    odd = reordered(tmp_path / "odd.mp4")
    assert read_track(odd) is None
    assert put_end_to_end(tmp_path / "two.mp4", [odd, odd], 10) == 16
    assert sorted(t for _, t, _ in packets(tmp_path / "two.mp4")) == [round(i / 10, 9) for i in range(16)]
    assert video_facts(odd).layout != video_facts(videos(tmp_path)[0]).layout


def test_other_settings_are_another_layout(tmp_path: Path) -> None:
    one, same = videos(tmp_path, lengths=(5, 9))
    other = tmp_path / "other.mp4"
    encode_video(other, 10, H264, [[np.zeros((64, 48, 3), np.uint8)] * 3])
    assert track_of(one).layout == track_of(same).layout
    assert track_of(one).layout != track_of(other).layout
    assert video_facts(one).identity != video_facts(same).identity


def test_a_damaged_file_is_never_read_past_its_end(tmp_path: Path) -> None:
    """Whatever the tables say: no track, or one whose frames all lie in the file."""
    good = videos(tmp_path, lengths=(6,))[0].read_bytes()
    at = good.index(b"moov")
    end = at - 4 + int(struct.unpack_from(">I", good, at - 4)[0])
    path, rng = tmp_path / "bad.mp4", random.Random(7)
    understood = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(at, end)] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.write_bytes(data)
        track = read_track(path)
        if track is not None:
            understood += 1
            assert int((track.offsets + track.sizes).max()) <= len(data)
            assert len(track.sizes) <= len(data)
    assert 0 < understood < 400
    for cut in (0, 7, 40, at + 30, len(good) - 10):
        path.write_bytes(good[:cut])
        assert read_track(path) is None


def test_a_source_that_shrinks_is_noticed(tmp_path: Path) -> None:
    source = videos(tmp_path, lengths=(6,))[0]
    track = track_of(source)
    source.write_bytes(source.read_bytes()[:60])
    with pytest.raises(ImportRefusedError, match="became shorter"):
        join(tmp_path / "out.mp4", [(source, track)], 10)
