"""Episodes as LeRobot sets: every tick a row, real times beside LeRobot's, and back without loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from episode_helpers import LOSSLESS, SPEC, TICK_NS, picture, record_episode, state
from lerobot_helpers import H264

from episodes.arrays import load_frames
from episodes.errors import ImportRefusedError, StoreError, StoreLockedError
from episodes.files import FileLayer
from episodes.lerobot import encode, export_episode
from episodes.lerobot.exporter import ExportOptions, export_lerobot
from episodes.lerobot.importer import import_lerobot
from episodes.lerobot.layout import Dataset
from episodes.store import EpisodeStore
from tools.commands.episodes_export import command

KEY = "observation.images.front"
BOTH = pytest.mark.parametrize("to", ["v2.1", "v3.0"])


@BOTH
def test_an_export_comes_back_as_it_was(store: EpisodeStore, tmp_path: Path, to: Any) -> None:
    ids = [record_episode(store, 30), record_episode(store, 12, task="another task")]
    report = export_lerobot(store, ids, tmp_path / "set", ExportOptions(to=to, video=H264))
    assert (report.rows, report.frames) == (42, 42)
    assert report.episodes == {ids[0]: 0, ids[1]: 1}
    assert Dataset(tmp_path / "set").version == to
    with EpisodeStore.open(tmp_path / "back") as back:
        imported = import_lerobot(tmp_path / "set", back)
        assert imported.notes == {i: ["action has no usable names in info.json"] for i in (0, 1)}
        assert imported.warnings == []
        for index, episode_id in enumerate(ids):
            was, now = store.read(episode_id), back.read(imported.imported[index])
            for name in ("observation.state", "action"):
                one, two = was.streams[name], now.streams[name]
                np.testing.assert_array_equal(one.values, two.values)
                np.testing.assert_array_equal(one.seq, two.seq)
                np.testing.assert_array_equal(one.t_ns - one.t_ns[0], two.t_ns)
                assert (one.names, one.unit) == (two.names, two.unit)
            frames = was.frames("front"), now.frames("front")
            np.testing.assert_array_equal(frames[0].repeated[9], True)
            assert now.meta.task == was.meta.task
            pictures = [load_frames(e, "front").astype(int) for e in (was, now)]
            # a picture is taken 1 µs after its tick: each row shows the one of the tick before
            assert np.abs(pictures[0][:-1] - pictures[1][1:]).mean() < 6


@BOTH
def test_what_lerobot_reads_is_its_own_grid(store: EpisodeStore, tmp_path: Path, to: Any) -> None:
    export_lerobot(store, [record_episode(store, 30)], tmp_path / "set", ExportOptions(to=to, video=H264))
    dataset = Dataset(tmp_path / "set")
    assert (dataset.fps, dataset.info["robot_type"]) == (30, "koch")
    table = dataset.table(dataset.episodes[0])
    np.testing.assert_array_equal(table["timestamp"].to_numpy(), (np.arange(30) / 30).astype(np.float32))
    np.testing.assert_array_equal(table["capture_time_ns"].to_numpy(), np.arange(30) * TICK_NS)
    names = set(dataset.features) - {KEY}
    assert {n for n in names if n.startswith(("observation", "action"))} == {"observation.state", "action"}
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text()) if to == "v3.0" else None
    if stats is not None:
        assert np.shape(stats[KEY]["mean"]) == (3, 1, 1)
        assert set(stats["action"]) == {
            "min",
            "max",
            "mean",
            "std",
            "count",
            "q01",
            "q10",
            "q50",
            "q90",
            "q99",
        }


def _with_gap(store: EpisodeStore, missing: range) -> str:
    writer = store.begin(SPEC, started_ns=0, config=LOSSLESS)
    for tick in range(30):
        if tick in missing:
            continue
        writer.append("observation.state", tick * TICK_NS, tick, state(tick))
        writer.append("action", tick * TICK_NS, tick, state(tick))
        if tick % 2 == 0:
            writer.append_frame("front", tick * TICK_NS, tick // 2, picture(tick))
    return writer.end("success").wait().id


def test_missing_ticks_stay_missing_unless_filled(store: EpisodeStore, tmp_path: Path) -> None:
    episode = _with_gap(store, range(10, 14))
    export_lerobot(store, [episode], tmp_path / "kept", ExportOptions(to="v2.1", video=H264))
    filled = export_lerobot(
        store, [episode], tmp_path / "filled", ExportOptions(to="v2.1", fill=True, video=H264)
    )
    rows = {}
    for name in ("kept", "filled"):
        dataset = Dataset(tmp_path / name)
        rows[name] = dataset.table(dataset.episodes[0])
    assert len(rows["kept"]) == 26
    assert np.diff(rows["kept"]["capture_time_ns"].to_numpy()).max() == 5 * TICK_NS
    assert rows["filled"]["capture_seq"].to_pylist() == [*range(10), *[9] * 4, *range(14, 30)]
    assert rows["filled"]["repeated"].to_pylist() == [10 <= row < 14 for row in range(30)]
    assert rows["filled"]["observation.state"].to_pylist()[12] == state(9).tolist()
    seen = rows["kept"]["capture_seq.front"].to_pylist()
    assert seen[:4] == [0, 0, 1, 1], "a picture is shown until there is a newer one"
    assert rows["kept"]["repeated.front"].to_pylist()[:4] == [False, True, False, True]
    assert any("of the row before" in note for note in filled.notes[episode])


def test_another_rate_takes_the_newest_tick(store: EpisodeStore, tmp_path: Path) -> None:
    episode = record_episode(store, 31)
    report = export_lerobot(store, [episode], tmp_path / "set", ExportOptions(to="v2.1", fps=10, video=H264))
    dataset = Dataset(tmp_path / "set")
    table = dataset.table(dataset.episodes[0])
    assert table["capture_seq"].to_pylist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert "20 ticks are shown by no row" in report.notes[episode][0]


def test_stored_jpegs_are_copied_byte_for_byte(store: EpisodeStore, tmp_path: Path) -> None:
    episode = record_episode(store, 5)
    export_lerobot(store, [episode], tmp_path / "set", ExportOptions(pictures="image"))
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    frames = store.read(episode).frames("front")
    assert [c["bytes"] for c in table[KEY].to_pylist()] == [frames.jpeg(i) for i in (0, 0, 1, 2, 3)]


def test_a_second_export_adds_only_what_is_new(store: EpisodeStore, tmp_path: Path) -> None:
    """In whatever order, and although all episodes hold the same data."""
    ids = [record_episode(store, 10) for _ in range(4)]
    options = ExportOptions(video=H264)
    first = export_lerobot(store, [ids[2], ids[1]], tmp_path / "set", options)
    assert (first.episodes, first.rows) == ({ids[2]: 0, ids[1]: 1}, 20)
    again = export_lerobot(store, ids[:3], tmp_path / "set", options)
    assert (again.episodes, again.rows, again.frames) == ({ids[0]: 2}, 10, 10)
    assert again.skipped == ids[1:3]
    nothing = export_lerobot(store, ids[:3], tmp_path / "set", options)
    assert (nothing.episodes, nothing.rows, nothing.conversion) == ({}, 0, None)
    export_lerobot(store, ids, tmp_path / "set", options)
    dataset = Dataset(tmp_path / "set")
    assert [e.length for e in dataset.episodes.values()] == [10, 10, 10, 10]
    labels = [dataset.labels.of(i, 10) for i in range(4)]
    assert [label.id for label in labels if label] == [ids[2], ids[1], ids[0], ids[3]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "store"], "nothing is left behind"


def test_the_command_says_what_was_really_written(store: EpisodeStore, tmp_path: Path) -> None:
    record_episode(store, 10)
    store.sync()
    arguments = [str(tmp_path / "set"), "--store", str(store.root), "--codec", "h264"]
    first = CliRunner().invoke(command, arguments)
    assert first.exit_code == 0, first.output
    assert "exported 1 episodes, 10 rows, 10 pictures" in first.output
    record_episode(store, 12)
    store.sync()
    second = CliRunner().invoke(command, arguments)
    assert "exported 1 episodes, 12 rows, 12 pictures" in second.output
    assert "; 1 were there already" in second.output
    third = CliRunner().invoke(command, arguments)
    assert "exported 0 episodes, 0 rows, 0 pictures" in third.output
    assert "; 2 were there already" in third.output


@BOTH
def test_two_exports_into_one_folder_are_refused(store: EpisodeStore, tmp_path: Path, to: Any) -> None:
    ids = [record_episode(store, 5)]
    options = ExportOptions(to=to, video=H264)
    refused: list[str] = []

    def second(done: int, total: int, what: str) -> None:
        with pytest.raises(StoreLockedError, match="is being written by process") as caught:
            export_lerobot(store, ids, tmp_path / "set", options)
        refused.append(str(caught.value))

    export_lerobot(store, ids, tmp_path / "set", options, second)
    assert refused
    assert "\n" not in refused[0]
    assert len(Dataset(tmp_path / "set").episodes) == 1


@BOTH
def test_a_folder_with_other_things_in_it_is_refused(store: EpisodeStore, tmp_path: Path, to: Any) -> None:
    ids = [record_episode(store, 5)]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ImportRefusedError, match=r"not empty .*cat\.jpg"):
        export_lerobot(store, ids, tmp_path / "photos", ExportOptions(to=to, video=H264))
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "empty").mkdir()
    export_lerobot(store, ids, tmp_path / "empty", ExportOptions(to=to, video=H264))
    assert len(Dataset(tmp_path / "empty").episodes) == 1


def test_what_can_be_known_before_is_refused_before_anything_is_encoded(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = record_episode(store, 5)
    target, options = tmp_path / "set", ExportOptions(video=H264)
    export_lerobot(store, [one], target, options)
    before = sorted(p for p in tmp_path.rglob("*") if "store" not in p.parts)
    monkeypatch.delattr(export_episode, "encode_video")
    writer = store.begin(SPEC, config=LOSSLESS, started_ns=0)
    writer.append("action", 0, 0, state(0))
    writer.append("observation.state", 0, 0, state(0))
    blind = writer.end("success").wait().id
    slow = record_episode(store, 5, fps=15.0)
    two = record_episode(store, 6)
    cases: list[tuple[list[str], ExportOptions, str]] = [
        ([two, blind], options, "no picture of camera front"),
        ([two, slow], options, "15 ticks a second.* has 30; give --fps"),
        ([two], replace(options, fps=10), "30 frames a second, the store has 10"),
        ([two], replace(options, streams=("action",)), r"observation\.state is absent"),
        ([two], replace(options, streams=("nothing",)), "no stream nothing"),
        ([two], replace(options, pictures="image"), "image"),
        ([two], replace(options, to="v2.1"), "holds a set"),
    ]
    for ids, wanted, words in cases:
        with pytest.raises(StoreError, match=words):
            export_lerobot(store, ids, target, wanted)
    assert sorted(p for p in tmp_path.rglob("*") if "store" not in p.parts) == before


def test_a_note_is_whole_and_later_than_what_it_notes(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut could leave: no note without the files it speaks of, and none that is torn."""
    log: list[tuple[str, str]] = []
    sync, rename = FileLayer.sync_path, FileLayer.rename

    def synced(self: FileLayer, path: Path) -> None:
        log.append(("sync", path.name))
        sync(self, path)

    def renamed(self: FileLayer, source: Path, target: Path) -> None:
        log.append(("rename", target.name))
        rename(self, source, target)

    monkeypatch.setattr(FileLayer, "sync_path", synced)
    monkeypatch.setattr(FileLayer, "rename", renamed)
    export_lerobot(store, [record_episode(store, 5)], tmp_path / "set", ExportOptions(to="v2.1", video=H264))
    note = log.index(("rename", "000000.json"))
    for before in ("episode_000000.mp4", "episode_000000.tmp", "000000.json.tmp"):
        assert ("sync", before) in log[:note], before
    assert log[note + 1] == ("sync", ".lines")


@BOTH
def test_a_torn_note_is_made_again(store: EpisodeStore, tmp_path: Path, to: Any) -> None:
    ids = [record_episode(store, 10), record_episode(store, 14)]

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lerobot(store, ids, tmp_path / "set", ExportOptions(to=to, video=H264), stop)
    note = tmp_path / ".set.export/.lines/000000.json"
    note.write_bytes(note.read_bytes()[:50])
    report = export_lerobot(store, ids, tmp_path / "set", ExportOptions(to=to, video=H264))
    assert (report.reused, report.frames) == (0, 24)


def test_nothing_of_an_export_that_was_given_up_gets_into_the_next(
    store: EpisodeStore, tmp_path: Path
) -> None:
    ids = [record_episode(store, 5) for _ in range(3)]

    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    options = ExportOptions(to="v2.1", video=H264)
    with pytest.raises(KeyboardInterrupt):
        export_lerobot(store, ids, tmp_path / "set", options, stop)
    export_lerobot(store, ids[:1], tmp_path / "set", options)
    files = sorted(p.name for p in (tmp_path / "set").rglob("episode_*"))
    assert files == ["episode_000000.mp4", "episode_000000.parquet"]


def test_an_interrupted_export_uses_what_is_there(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [record_episode(store, 10), record_episode(store, 14)]

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lerobot(store, ids, tmp_path / "set", ExportOptions(video=H264), stop)
    assert not (tmp_path / "set").exists()
    encoded: list[Path] = []
    real = encode.encode_video

    def counted(path: Path, *arguments: Any) -> int:
        encoded.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(export_episode, "encode_video", counted)
    report = export_lerobot(store, ids, tmp_path / "set", ExportOptions(video=H264))
    assert (report.reused, len(encoded)) == (1, 1)
    assert [e.length for e in Dataset(tmp_path / "set").episodes.values()] == [10, 14]


def test_what_does_not_fit_together_is_refused(store: EpisodeStore, tmp_path: Path) -> None:
    one = record_episode(store, 5)
    writer = store.begin(SPEC.model_copy(update={"cameras": ()}), config=LOSSLESS, started_ns=0)
    writer.append("action", 0, 0, state(0))
    writer.append("observation.state", 0, 0, state(0))
    other = writer.end("success").wait().id
    with pytest.raises(StoreError, match="other streams or cameras"):
        export_lerobot(store, [one, other], tmp_path / "set", ExportOptions(video=H264))
    with pytest.raises(StoreError, match="no episode chosen"):
        export_lerobot(store, [], tmp_path / "set")
    export_lerobot(store, [one], tmp_path / "old", ExportOptions(to="v2.1", video=H264))
    with pytest.raises(ImportRefusedError, match="holds a set"):
        export_lerobot(store, [one], tmp_path / "old", ExportOptions(to="v2.1", video=H264))
