"""LeRobot datasets come in as they are: real v2.1 and v3.0 recordings, and the ways they break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_helpers import record_episode

from episodes.arrays import load_frames
from episodes.errors import ImportRefusedError
from episodes.lerobot.importer import ImportProgress, import_lerobot
from episodes.lerobot.layout import Dataset
from episodes.store import EpisodeStore

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
V21, V30 = FIXTURES / "cr5_pick_v21", FIXTURES / "cr5_pick_v30"
SMALL = (48, 64)
real = pytest.mark.skipif(not V21.is_dir() or not V30.is_dir(), reason=f"no LeRobot fixtures in {FIXTURES}")
JOINTS = tuple(f"joint_{i}_vel" for i in range(6))


@real
@pytest.mark.parametrize("root", [V21, V30], ids=["v2.1", "v3.0"])
def test_metadata_of_real_datasets(root: Path) -> None:
    dataset = Dataset(root)
    assert len(dataset.episodes) == 20
    assert sum(e.length for e in dataset.episodes.values()) == 4499
    assert dataset.tasks == {0: "put the banana on the plate"}
    assert dataset.features["action"].names == (*JOINTS, "gripper")
    for episode in dataset.episodes.values():
        assert len(dataset.table(episode)) == episode.length


@real
def test_a_real_v21_dataset_keeps_its_numbers_times_and_names(store: EpisodeStore) -> None:
    seen: list[ImportProgress] = []
    report = import_lerobot(V21, store, episodes=[0, 5], image_size=SMALL, progress=seen.append)
    assert list(report.imported) == [0, 5]
    assert [(p.done, p.total) for p in seen] == [(0, 2), (1, 2), (2, 2)]
    table = pq.read_table(V21 / "data" / "chunk-000" / "episode_000000.parquet")
    episode = store.read(report.imported[0])
    action = episode.streams["action"]
    np.testing.assert_array_equal(action.values, np.array(table["action"].to_pylist(), np.float32))
    np.testing.assert_array_equal(action.t_ns, [round(t * 1e9) for t in table["timestamp"].to_pylist()])
    assert action.names == (*JOINTS, "gripper")
    assert episode.streams["observation.state"].values.shape == (197, 6)
    assert episode.cameras == ("top",)
    assert len(episode.frames("top")) == 197
    assert episode.frames("top")[0].shape == (*SMALL, 3)
    assert (episode.meta.kind, episode.meta.fps) == ("import", 10.0)
    assert episode.meta.task == "put the banana on the plate"
    assert "drift up to 0.92 s" in report.notes[0][0]
    assert 5 not in report.notes, "episode 5 is regular"
    assert store.verify().ok
    assert store.query("SELECT robot, count(*) AS n FROM episodes GROUP BY robot") == [
        {"robot": "cr5", "n": 2}
    ]


@real
def test_both_versions_give_the_same_pictures_and_numbers(store: EpisodeStore) -> None:
    """v3.0 keeps many episodes in a file: an episode in the middle starts at the right frame."""
    chosen = [6, 19]
    old = import_lerobot(V21, store, episodes=chosen, image_size=SMALL)
    new = import_lerobot(V30, store, episodes=chosen, image_size=SMALL)
    for index in chosen:
        one, two = store.read(old.imported[index]), store.read(new.imported[index])
        for name in ("observation.state", "action"):
            np.testing.assert_array_equal(one.streams[name].values, two.streams[name].values)
        pictures = [load_frames(e, "top").astype(int) for e in (one, two)]
        np.testing.assert_array_equal(pictures[0], pictures[1])
        np.testing.assert_allclose(two.streams["action"].t_ns, np.arange(two.meta.ticks) * 1e8, atol=2000)
    assert new.notes == {}


@real
def test_an_import_resumes_and_skips_what_is_there(store: EpisodeStore) -> None:
    import_lerobot(V21, store, episodes=[5], image_size=SMALL)
    again = import_lerobot(V21, store, episodes=[5, 12], image_size=SMALL)
    assert again.skipped == [5]
    assert list(again.imported) == [12]
    other_size = import_lerobot(V21, store, episodes=[5], image_size=(24, 32))
    assert list(other_size.imported) == [5]


@real
def test_an_interrupted_import_is_done_again(tmp_path: Path) -> None:
    class StopHereError(Exception):
        pass

    def stop(progress: ImportProgress) -> None:
        if progress.done == 1:
            raise StopHereError

    with EpisodeStore.open(tmp_path / "s") as store:
        with pytest.raises(StopHereError):
            import_lerobot(V21, store, episodes=[5, 12], image_size=SMALL, progress=stop)
        store.close()
    with EpisodeStore.open(tmp_path / "s") as store:
        again = import_lerobot(V21, store, episodes=[5, 12], image_size=SMALL)
        assert again.skipped == [5]
        assert len(store.ids()) == 2


@real
def test_a_full_size_picture_is_close_to_the_video(store: EpisodeStore) -> None:
    report = import_lerobot(V30, store, episodes=[18])
    frame = store.read(report.imported[18]).frames("top")[10]
    assert frame.shape == (480, 640, 3)
    small = cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA)
    shrunk = import_lerobot(V30, store, episodes=[18], image_size=SMALL)
    assert np.abs(store.read(shrunk.imported[18]).frames("top")[10].astype(int) - small).mean() < 3


@real
def test_a_missing_video_is_refused_by_name_and_nothing_is_touched(
    store: EpisodeStore, tmp_path: Path
) -> None:
    root = _copy(V21, tmp_path)
    gone = root / "videos" / "chunk-000" / "observation.images.top" / "episode_000012.mp4"
    gone.unlink()
    kept = record_episode(store)
    with pytest.raises(ImportRefusedError, match=r"episode_000012\.mp4") as caught:
        import_lerobot(root, store, episodes=[5, 12], image_size=SMALL)
    assert "--allow-missing-video" in str(caught.value)
    assert store.ids() == [kept]
    report = import_lerobot(root, store, episodes=[12], allow_missing_video=True)
    assert store.read(report.imported[12]).cameras == ()
    assert any("left out" in note for note in report.notes[12])


@real
@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_broken_video_stops_the_import_and_keeps_the_rest(
    store: EpisodeStore, tmp_path: Path, how: str
) -> None:
    root = _copy(V21, tmp_path)
    video = root / "videos" / "chunk-000" / "observation.images.top" / "episode_000012.mp4"
    data = video.read_bytes()
    video.unlink()
    video.write_bytes(data[: len(data) // 2] if how == "truncated" else b"not a video" * 100)
    with pytest.raises(ImportRefusedError, match=r"episode_000012\.mp4"):
        import_lerobot(root, store, episodes=[5, 12], image_size=SMALL)
    ids = store.ids()
    assert [store.read(i).meta.provenance["episode_index"] for i in ids] == [5]
    assert list((store.root / "journals").iterdir()) == []


def _copy(source: Path, tmp_path: Path) -> Path:
    """A copy whose files can be changed, by hard links where possible."""
    return Path(shutil.copytree(source, tmp_path / source.name, copy_function=_copy_writable))


def _copy_writable(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    return target


# ---- datasets made here: what the real ones do not have ----------------------------------------


def make_v21(root: Path, change: Callable[[dict[str, Any], dict[str, Any]], None] | None = None) -> Path:
    """A v2.1 dataset of one episode with four rows and one embedded PNG camera; ``change`` edits it."""
    rows = 4
    pngs = [cv2.imencode(".png", np.full((8, 10, 3), 40 * i, np.uint8))[1].tobytes() for i in range(rows)]
    columns: dict[str, Any] = {
        "observation.state": [[i, i + 0.5] for i in range(rows)],
        "next.reward": [0.25 * i for i in range(rows)],
        "observation.images.eye": [{"bytes": p, "path": None} for p in pngs],
        "timestamp": [i / 30 for i in range(rows)],
        "frame_index": list(range(rows)),
        "episode_index": [0] * rows,
        "task_index": [0] * rows,
    }
    info: dict[str, Any] = {
        "codebase_version": "v2.1", "robot_type": "koch", "fps": 30, "chunks_size": 1000,
        "total_episodes": 1, "total_frames": rows,
        "data_path": "data/episode_{episode_index:06d}.parquet", "video_path": None,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
            "next.reward": {"dtype": "float32", "shape": [1], "names": None},
            "observation.images.eye": {"dtype": "image", "shape": [8, 10, 3], "names": ["h", "w", "c"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }  # fmt: skip
    if change is not None:
        change(info, columns)
    (root / "meta").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "look"}\n')
    (root / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["look"], "length": 4}\n')
    pq.write_table(pa.table(columns), root / "data" / "episode_000000.parquet")
    return root


def test_embedded_images_and_scalars_are_imported(store: EpisodeStore, tmp_path: Path) -> None:
    report = import_lerobot(make_v21(tmp_path / "d"), store, outcome="success")
    episode = store.read(report.imported[0])
    assert episode.streams["observation.state"].names == ("a", "b")
    np.testing.assert_allclose(episode.streams["next.reward"].values, [0, 0.25, 0.5, 0.75])
    assert [int(f.mean().round()) for f in load_frames(episode, "eye")] == [0, 40, 80, 120]
    assert (episode.meta.task, episode.meta.outcome) == ("look", "success")


def _drop_names(info: dict[str, Any], columns: dict[str, Any]) -> None:
    info["features"]["observation.state"]["names"] = None
    info["total_frames"] = 99


def test_missing_names_and_wrong_totals_are_reported(store: EpisodeStore, tmp_path: Path) -> None:
    report = import_lerobot(make_v21(tmp_path / "d", _drop_names), store)
    assert "observation.state has no usable names in info.json" in report.notes[0]
    assert report.warnings == ["info.json says total_frames 99, the metadata lists 4"]
    assert store.read(report.imported[0]).streams["observation.state"].names == ()


def _odd_values(info: dict[str, Any], columns: dict[str, Any]) -> None:
    columns["observation.state"][2] = [float("nan"), 0.0]
    columns["frame_index"] = [0, 1, 3, 4]
    columns["timestamp"] = [0.0, 0.1, 0.1, 0.2]


def test_odd_values_are_noted_and_kept(store: EpisodeStore, tmp_path: Path) -> None:
    report = import_lerobot(make_v21(tmp_path / "d", _odd_values), store)
    notes = " | ".join(report.notes[0])
    for expected in (
        "not finite in 1 rows",
        "does not count 0, 1, 2",
        "does not advance between 1",
        "gaps longer",
    ):
        assert expected in notes
    episode = store.read(report.imported[0])
    assert episode.meta.streams["observation.state"].missing == 1


def _rename(info: dict[str, Any], columns: dict[str, Any], old: str, new: str) -> None:
    info["features"][new] = info["features"].pop(old)
    columns[new] = columns.pop(old)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda i, c: i.update(codebase_version="v1.6"), "version v1.6"),
        (lambda i, c: i.pop("fps"), "malformed"),
        (lambda i, c: i.update(data_path="../../etc/{episode_index}.parquet"), "outside the dataset"),
        (lambda i, c: i.update(data_path="data/none_{episode_index}.parquet"), "is missing"),
        (lambda i, c: i["features"]["observation.state"].update(shape=[3]), r"no float32 of shape \(3,\)"),
        (lambda i, c: _rename(i, c, "next.reward", "a/b"), "cannot be part of a path"),
        (lambda i, c: c.update({k: v[:3] for k, v in c.items()}), "has 3 rows of episode 0"),
        (lambda i, c: c.update({"observation.images.eye": [{"bytes": None, "path": "x"}] * 4}), "pictures"),
    ],
)  # fmt: skip
def test_datasets_that_cannot_be_imported_say_why(
    store: EpisodeStore,
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    expected: str,
) -> None:
    root = make_v21(tmp_path / "d", change)
    with pytest.raises(ImportRefusedError, match=expected) as caught:
        import_lerobot(root, store)
    assert "\n" not in str(caught.value)
    assert store.ids() == []
    assert list((store.root / "journals").iterdir()) == []


def test_a_parquet_file_without_footer_is_named(store: EpisodeStore, tmp_path: Path) -> None:
    root = make_v21(tmp_path / "d")
    path = root / "data" / "episode_000000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImportRefusedError, match=r"episode_000000\.parquet is not a readable parquet"):
        import_lerobot(root, store)


def test_a_folder_that_is_no_dataset_is_refused(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"info\.json is missing"):
        import_lerobot(tmp_path, store)
    root = make_v21(tmp_path / "d")
    with pytest.raises(ImportRefusedError, match="no episode 7"):
        import_lerobot(root, store, episodes=[7])
