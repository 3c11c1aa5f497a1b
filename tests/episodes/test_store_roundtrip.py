"""What is recorded is what is read: values, times, pictures, provenance; here and through zarr itself."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from episode_helpers import LOSSLESS, SPEC, TICK_NS, picture, record_episode, record_ticks, state
from pydantic import ValidationError

from episodes.absorb import absorb
from episodes.arrays import load_frames
from episodes.errors import (
    QueryError,
    RecordingError,
    StoreError,
    StoreFormatError,
    StoreLockedError,
    UnknownEpisodeError,
)
from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig


def test_an_episode_reads_back_as_recorded(store: EpisodeStore) -> None:
    episode = store.read(record_episode(store, 30))
    data = episode.streams["observation.state"]
    np.testing.assert_array_equal(data.values, np.stack([state(t) for t in range(30)]))
    np.testing.assert_array_equal(data.t_ns, np.arange(30) * TICK_NS)
    np.testing.assert_array_equal(data.seq, np.arange(30))
    assert data.names == tuple("abcdef")
    assert data.unit == "rad"
    assert episode.streams["tick.source"].values.dtype == np.uint8
    assert episode.meta.ticks == 30
    assert episode.meta.seconds == pytest.approx((29 * TICK_NS + 1000) / 1e9)
    assert episode.meta.provenance["policy"] == "p1"
    assert not episode.meta.recovered


def test_any_frame_is_read_on_its_own(store: EpisodeStore) -> None:
    frames = store.read(record_episode(store, 30)).frames("front")
    assert len(frames) == 30
    np.testing.assert_array_equal(frames.t_ns, np.arange(30) * TICK_NS + 1000)
    np.testing.assert_array_equal(np.flatnonzero(frames.repeated), [9, 19, 29])
    for index in (17, 0, 29):
        assert np.abs(frames[index].astype(int) - picture(index)).max() <= 6
    assert frames.jpeg(3)[:2] == b"\xff\xd8"
    with pytest.raises(IndexError):
        frames[30]


def test_zarr_itself_reads_the_group(store: EpisodeStore) -> None:
    episode = store.read(record_episode(store, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # episode.json is not part of the hierarchy
        group = zarr.open_group(episode.folder, mode="r")
        names = set(group.array_keys())
    assert names == {"time.0", *episode.streams, "frames.front", "frames.front.index"}
    np.testing.assert_array_equal(group["action"][:], episode.streams["action"].values)
    np.testing.assert_array_equal(group["time.0"][:, 1], np.arange(30))
    first = group["frames.front.index"][0]
    blob = group["frames.front"][first[3] : first[3] + first[4]]
    assert blob.tobytes() == episode.frames("front").jpeg(0)


def test_long_streams_span_chunks_and_zarr_agrees(store: EpisodeStore) -> None:
    rows = 70_001  # 1 MiB chunks of 64-byte rows: five, the last one padded
    spec = EpisodeSpec(task="long", streams=(StreamSpec(name="bus", dtype="float64", shape=(8,)),))
    writer = store.begin(spec, config=LOSSLESS)
    for row in range(rows):
        writer.append("bus", row, row, np.full(8, row))
    episode = store.read(writer.end("unknown").wait(60).id)
    values = episode.streams["bus"].values
    np.testing.assert_array_equal(values[:, 3], np.arange(rows))
    np.testing.assert_array_equal(zarr.open_array(episode.folder / "bus", mode="r")[:], values)


def test_pictures_span_chunks(store: EpisodeStore) -> None:
    spec = EpisodeSpec(task="big", cameras=(CameraSpec(name="front", height=480, width=640),))
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    writer = store.begin(spec, config=LOSSLESS)
    for row in range(30):  # about 0.36 MB each: three 4 MiB chunks
        writer.append_frame("front", row, row, np.roll(noise, row, 0))
    episode = store.read(writer.end("unknown").wait(60).id)
    frames = episode.frames("front")
    assert len([p for p in (episode.folder / "frames.front").iterdir() if p.name != "zarr.json"]) >= 3
    assert frames.jpegs() == [frames.jpeg(i) for i in range(30)]
    whole = load_frames(episode, "front", threads=2)
    np.testing.assert_array_equal(whole[29], frames[29])


def test_bulk_frames_at_a_smaller_size(store: EpisodeStore) -> None:
    episode = store.read(record_episode(store, 12))
    small = load_frames(episode, "front", size=(6, 8))
    assert small.shape == (12, 6, 8, 3)
    for index in range(12):
        assert abs(small[index].mean() - picture(index).mean()) < 4
    with pytest.raises(KeyError, match="front"):
        load_frames(episode, "wrist")


def test_same_data_gives_the_same_digest(store: EpisodeStore) -> None:
    one, two = (store.read(record_episode(store, 20, i)) for i in ("a", "b"))
    assert one.digest != store.read(record_episode(store, 21, "c")).digest
    arrays = [{n: d for n, d in e.marker.files.items() if n != "zarr.json"} for e in (one, two)]
    assert arrays[0] == arrays[1]


def test_flags_and_interventions_are_kept_and_queried(store: EpisodeStore) -> None:
    writer = store.begin(SPEC, config=LOSSLESS)
    record_ticks(writer, 5)
    writer.flag("stall", 10, 20, 1.5, {"joint": 2, "effort": np.float32(0.5), "row": np.arange(2)})
    writer.intervention(30, 40, "operator")
    episode = store.read(writer.end("failure", "stalled").wait(30).id)
    assert episode.flags[0].evidence == {"joint": 2, "effort": 0.5, "row": [0, 1]}
    assert episode.interventions[0].by == "operator"
    assert store.select("flagged AND interventions = 1 AND outcome = 'failure'") == [episode.id]
    rows = store.query(
        "SELECT e.task, f.kind, i.who FROM episodes e JOIN flags f ON f.episode_id = e.id, interventions i"
    )
    assert rows == [{"task": SPEC.task, "kind": "stall", "who": "operator"}]


def test_sql_cannot_touch_the_store_and_errors_are_one_line(store: EpisodeStore, tmp_path: Path) -> None:
    kept = record_episode(store)
    for bad in (
        "SELECT nope FROM episodes",
        "SELEC",
        f"COPY episodes TO '{tmp_path}/x.csv'",
        "SELECT * FROM '/etc/passwd'",
        "DELETE FROM episodes",
        "SELECT 1; DROP TABLE episodes",
    ):
        with pytest.raises(QueryError) as caught:
            store.query(bad)
        assert "\n" not in str(caught.value)
    assert store.ids() == [kept]
    assert not (tmp_path / "x.csv").exists()


def test_readers_read_beside_a_live_writer(store: EpisodeStore) -> None:
    first = record_episode(store)
    with EpisodeStore.open(store.root, mode="r") as reader:
        assert reader.ids() == [first]
        second = record_episode(store)
        assert reader.ids() == [first, second]
        assert reader.read(second).meta.ticks == 30
        assert reader.verify().ok
        with pytest.raises(StoreError, match="reading only"):
            reader.begin(SPEC)


def test_a_second_writer_is_refused_with_the_pid(store: EpisodeStore) -> None:
    with pytest.raises(StoreLockedError, match=str(os.getpid())):
        EpisodeStore.open(store.root)
    store.close()
    EpisodeStore.open(store.root).close()


def test_a_full_queue_drops_counts_and_records(store: EpisodeStore) -> None:
    config = WriterConfig(queue_items=16, group_ms=5000)
    writer = store.begin(SPEC, config=config)
    kept = [writer.append("action", t, t, state(t)) for t in range(2000)]
    while not kept[-1]:  # until there is room again
        time.sleep(0.01)
        kept.append(writer.append("action", len(kept), len(kept), state(0)))
    dropped = kept.count(False)
    assert dropped > 0
    ref = writer.end("success")
    episode = store.read(ref.wait(30).id)
    assert episode.meta.drops["action"].count == dropped
    assert episode.meta.drops["action"].first_ns == kept.index(False)
    assert len(episode.streams["action"]) == len(kept) - dropped
    assert episode.meta.streams["action"].missing == dropped
    assert store.query("SELECT dropped FROM episodes")[0]["dropped"] == dropped


def test_lockstep_recording_waits_instead_of_dropping(store: EpisodeStore) -> None:
    writer = store.begin(SPEC, config=WriterConfig(queue_items=16, group_ms=5000, wait_when_full=True))
    record_ticks(writer, 500)
    meta = writer.end("success").wait(60)
    assert meta.drops == {}
    assert {s.rows for s in meta.streams.values()} == {500}
    assert meta.cameras["front"].frames == 500


def test_gaps_in_the_sequence_are_recorded(store: EpisodeStore) -> None:
    writer = store.begin(SPEC, config=LOSSLESS)
    record_ticks(writer, 10)
    record_ticks(writer, 10, start=13)
    meta = writer.end("success").wait(30)
    assert meta.streams["action"].missing == 3
    assert meta.streams["action"].max_gap_ns == 4 * TICK_NS
    assert meta.cameras["front"].missing == 3


def test_misuse_is_a_typed_error(store: EpisodeStore) -> None:
    writer = store.begin(SPEC)
    with pytest.raises(RecordingError, match="no stream 'nope'"):
        writer.append("nope", 0, 0, 1)
    with pytest.raises(RecordingError, match=r"takes shape \(6,\)"):
        writer.append("action", 0, 0, np.zeros(5))
    with pytest.raises(RecordingError, match="takes uint8"):
        writer.append_frame("front", 0, 0, np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(RecordingError, match="not JSON"):
        store.begin(SPEC.model_copy(update={"provenance": {"x": object()}}))
    writer.end("success").wait(30)
    with pytest.raises(RecordingError, match="is finished"):
        writer.append("action", 0, 0, state(0))
    with pytest.raises(UnknownEpisodeError, match="nothing-here"):
        store.read("nothing-here")
    with pytest.raises(ValidationError):
        StreamSpec(name="time.0")
    with pytest.raises(ValidationError):
        StreamSpec(name="../x")


def test_caller_may_reuse_its_arrays(store: EpisodeStore) -> None:
    writer = store.begin(SPEC, config=LOSSLESS)
    values, image = state(0), picture(0)
    writer.append("action", 0, 0, values)
    writer.append_frame("front", 0, 0, image)
    values[:] = -1
    image[:] = 255
    episode = store.read(writer.end("success").wait(30).id)
    np.testing.assert_array_equal(episode.streams["action"].values[0], state(0))
    assert episode.frames("front")[0].mean() < 100


def test_discard_leaves_nothing(store: EpisodeStore) -> None:
    writer = store.begin(SPEC, config=LOSSLESS)
    record_ticks(writer, 50)
    writer.discard()
    writer.discard()
    assert store.ids() == []
    assert list((store.root / "journals").iterdir()) == []
    assert list((store.root / "episodes").iterdir()) == []


def test_closing_ends_what_still_runs(tmp_path: Path) -> None:
    store = EpisodeStore.open(tmp_path / "s")
    writer = store.begin(SPEC, config=LOSSLESS)
    record_ticks(writer, 8)
    store.close()
    store.close()
    with EpisodeStore.open(tmp_path / "s", mode="r") as again:
        meta = again.read(writer.id).meta
    assert (meta.outcome, meta.ticks, meta.recovered) == ("unknown", 8, False)
    assert "closed" in meta.reason


def test_group_durability_is_promised_at_sync(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "s", durability="group") as store:
        episode_id = record_episode(store)
        assert store.query("SELECT durable FROM episodes") == [{"durable": False}]
        store.sync()
        assert store.query("SELECT durable FROM episodes") == [{"durable": True}]
        assert store.read(episode_id).meta.ticks == 30


def test_absorbing_another_store_moves_its_episodes(store: EpisodeStore, tmp_path: Path) -> None:
    mine = record_episode(store)
    with EpisodeStore.open(tmp_path / "other") as other:
        theirs = [record_episode(other) for _ in range(3)]
    assert absorb(store, tmp_path / "other") == theirs
    assert set(store.ids()) == {mine, *theirs}
    assert store.verify().ok
    with EpisodeStore.open(tmp_path / "other") as other:
        assert other.ids() == []
        record_episode(other, episode_id=mine)
    with pytest.raises(RecordingError, match="exists in"):
        absorb(store, tmp_path / "other")


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(StoreFormatError, match="not empty"):
        EpisodeStore.open(tmp_path / "photos")
    with pytest.raises(StoreFormatError, match="no episode store"):
        EpisodeStore.open(tmp_path / "absent", create=False)
    EpisodeStore.open(tmp_path / "s").close()
    (tmp_path / "s" / "store.json").write_text('{"format": "ratchet-episodes", "version": 99}')
    with pytest.raises(StoreFormatError, match="99"):
        EpisodeStore.open(tmp_path / "s")
    (tmp_path / "s" / "store.json").write_text('{"format": "ratchet-episodes", "version": "1"}')
    with pytest.raises(StoreFormatError, match="its version a whole number"):
        EpisodeStore.open(tmp_path / "s")
