"""Pictures in groups of H.264: recorded, recovered, read at random, trained from, shown, damaged."""

from __future__ import annotations

import random
import time
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from episode_helpers import LOSSLESS, SPEC, TICK_NS, picture, record_ticks

from episodes.arrays import load_frames
from episodes.draft import read_journal
from episodes.errors import DamagedError
from episodes.h264 import GROUP
from episodes.lerobot.exporter import ExportOptions, export_lerobot
from episodes.reader import FrameSeq, decode_jpeg
from episodes.spec import EpisodeSpec
from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.loading import load_dataset
from tools.viewer.library import Library

H264 = EpisodeSpec.model_validate({**SPEC.model_dump(), "codec": "h264"})
TICKS = 3 * GROUP + 5


def record(store: EpisodeStore, ticks: int = TICKS) -> str:
    writer = store.begin(H264, config=LOSSLESS, started_ns=0)
    record_ticks(writer, ticks)
    return writer.end("success", "done").wait(30).id


def close(found: npt.NDArray[np.uint8], tick: int) -> bool:
    return bool(np.abs(found.astype(int) - picture(tick)).mean() < 3)


def test_every_picture_is_read_in_any_order(store: EpisodeStore) -> None:
    episode = store.read(record(store))
    assert episode.meta.cameras["front"].codec == "h264"
    frames = episode.frames("front")
    in_order = [frames[i] for i in range(TICKS)]
    assert all(close(found, tick) for tick, found in enumerate(in_order))
    order = random.Random(1).sample(range(TICKS), TICKS)
    for index in [*order, order[-1], -1]:
        np.testing.assert_array_equal(frames[index], in_order[index])
    with pytest.raises(IndexError):
        frames[TICKS]
    np.testing.assert_array_equal(load_frames(episode, "front", threads=2), np.stack(in_order))
    half = np.empty((12, 16, 3), np.uint8)
    frames.read_into(17, half)
    assert abs(float(half.mean()) - float(picture(17).mean())) < 3
    assert close(decode_jpeg(frames.jpeg(9)), 9)
    assert frames.repeated.tolist() == [tick % 10 == 9 for tick in range(TICKS)]
    assert store.verify().ok


def test_training_the_viewer_and_an_export_take_it_as_any_other(store: EpisodeStore, tmp_path: Path) -> None:
    name = record(store)
    data = load_dataset(store, [name], DataConfig(image_size=(24, 32), ram_gib=1e-9))
    seen = data.picture("front").numpy()
    assert all(close(seen[tick], tick) for tick in range(1, len(data)))
    run = Library(store).jpegs(name, "front", GROUP - 1, 3)
    length = int.from_bytes(run[:4], "little")
    assert close(decode_jpeg(run[4 : 4 + length]), GROUP - 1)
    export_lerobot(store, [name], tmp_path / "set", ExportOptions(to="v2.1"))
    (video,) = (tmp_path / "set").rglob("*.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == TICKS


def test_two_streams_in_turn_do_not_mix(store: EpisodeStore) -> None:
    one, two = (store.read(record(store)).frames("front") for _ in range(2))
    for index in range(TICKS - 1):
        assert close(one[index], index)
        assert close(two[index + 1], index + 1)


def test_a_group_needs_nothing_before_it(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = store.read(record(store)).frames("front")
    read: list[int] = []
    stored = FrameSeq.stored

    def noted(self: FrameSeq, index: int) -> bytes:
        read.append(index)
        return stored(self, index)

    monkeypatch.setattr(FrameSeq, "stored", noted)
    assert close(frames[2 * GROUP + 3], 2 * GROUP + 3)
    assert read == [2 * GROUP + i for i in range(4)]
    assert close(frames[2 * GROUP + 4], 2 * GROUP + 4)
    assert read[4:] == [2 * GROUP + 4], "read in order, each is decoded once"


def test_what_a_crash_leaves_decodes_to_its_end(tmp_path: Path) -> None:
    source = EpisodeStore.open(tmp_path / "a")
    writer = source.begin(H264, config=LOSSLESS, started_ns=0, episode_id="cut")
    journal = source.root / "journals" / "cut.journal"
    deadline = time.monotonic() + 30
    for ticks in range(5, TICKS + 1, 5):  # several groups of the journal, which are no groups of pictures
        record_ticks(writer, 5, ticks - 5)
        while (read := read_journal(journal).draft) is None or len(read.frames[0]) < ticks:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    data = journal.read_bytes()
    with EpisodeStore.open(tmp_path / "b") as other:
        pass
    (other.root / "journals" / "cut.journal").write_bytes(data[: len(data) * 2 // 3])
    with EpisodeStore.open(tmp_path / "b") as again:
        episode = again.read("cut")
        assert episode.meta.recovered
        frames = episode.frames("front")
        assert 0 < len(frames) < TICKS
        assert all(close(frames[i], int(frames.seq[i])) for i in range(len(frames)))
    source.close()


def test_a_damaged_picture_takes_only_the_rest_of_its_group(store: EpisodeStore) -> None:
    name = record(store)
    lengths = store.read(name).frames("front").lengths
    blob = store.root / "episodes" / name / "frames.front" / "0"
    data = bytearray(blob.read_bytes())
    bad = GROUP + 2
    data[int(lengths[:bad].sum()) + 5] ^= 0xFF
    blob.write_bytes(data)
    frames = store.read(name).frames("front")
    for index in range(TICKS):
        if bad <= index < 2 * GROUP:
            with pytest.raises(DamagedError, match=f"frame {bad} of .* is damaged"):
                frames[index]
        else:
            assert close(frames[index], index)


def test_a_jpeg_handed_in_joins_the_stream_and_odd_sizes_are_refused(store: EpisodeStore) -> None:
    with EpisodeStore.open(store.root.parent / "jpegs") as other:
        writer = other.begin(SPEC, config=LOSSLESS, started_ns=0)
        record_ticks(writer, 4)
        jpegs = other.read(writer.end("success").wait(30).id).frames("front").jpegs()
    writer = store.begin(H264, config=LOSSLESS, started_ns=0)
    for tick, jpeg in enumerate(jpegs):
        writer.append_jpeg("front", tick * TICK_NS, tick, jpeg)
    writer.append_frame("front", 4 * TICK_NS, 4, picture(4))
    frames = store.read(writer.end("success").wait(30).id).frames("front")
    assert all(close(frames[i], i) for i in range(5))
    odd = {**H264.model_dump(), "cameras": [{"name": "front", "height": 25, "width": 32}]}
    with pytest.raises(ValueError, match="even"):
        EpisodeSpec.model_validate(odd)
