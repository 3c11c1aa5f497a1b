"""Somebody else's set: sizes and format strings are looked at before anything is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_helpers import KEY, edit_info, make_set

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.convert import convert_v30
from episodes.lerobot.importer import import_lerobot
from episodes.lerobot.layout import Dataset
from episodes.store import EpisodeStore


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fps": 1e9}, "fps"),
        ({"fps": True}, "fps"),
        ({"chunks_size": 0}, "chunks_size"),
        ({"data_path": "data/{episode_index:999999999d}.parquet"}, "path template"),
        ({"data_path": "data/{episode_index.__class__}.parquet"}, "path template"),
        ({"data_path": "data/{episode_index!r}.parquet"}, "path template"),
        ({"data_path": "data/{"}, "path template"),
        ({"data_path": "../../{episode_index}.parquet"}, "outside the dataset"),
        ({"features": {"x": {"dtype": "float32", "shape": [1 << 40]}}}, "too large"),
        ({"features": {"x": {"dtype": "float32", "shape": [1000, 1000, 1000]}}}, "too large"),
        ({"features": {"x": {"dtype": "float32", "shape": [-1]}}}, "no usable shape"),
        ({"features": {"/home/x": {"dtype": "float32", "shape": [1]}}}, "cannot be part of a path"),
        ({"features": {"a..": {"dtype": "float32", "shape": [1]}}}, "cannot be part of a path"),
        ({"features": {"a\nb": {"dtype": "float32", "shape": [1]}}}, "cannot be part of a path"),
        ({"features": {"x" * 200: {"dtype": "float32", "shape": [1]}}}, "cannot be part of a path"),
        ({"features": {KEY: {"dtype": "video", "shape": [1 << 20, 640, 3]}}}, "too large"),
        ({"features": {KEY: {"dtype": "video", "shape": [480, 640]}}}, "neither height"),
        (
            {"features": {f"f{i}": {"dtype": "float32", "shape": [1]} for i in range(600)}},
            "no usable features",
        ),
    ],
)
def test_info_json_has_limits(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    root = make_set(tmp_path / "set", (3,))
    edit_info(root, **changes)
    with pytest.raises(ImportRefusedError, match=expected) as caught:
        Dataset(root)
    assert len(str(caught.value)) < 400


def test_files_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(tmp_path / "set", (3,))
    dataset = Dataset(root)
    monkeypatch.setattr(bounds, "GROUP_BYTES", 10)
    with pytest.raises(ImportRefusedError, match="too many to read at once"):
        dataset.table(dataset.episodes[0])
    monkeypatch.setattr(bounds, "PARQUET_COLUMNS", 3)
    with pytest.raises(ImportRefusedError, match="more than this program reads"):
        dataset.table(dataset.episodes[0])
    monkeypatch.setattr(bounds, "LINE_BYTES", 10)
    with pytest.raises(ImportRefusedError, match="a line of more than 10 bytes"):
        Dataset(root)
    monkeypatch.setattr(bounds, "JSON_BYTES", 10)
    with pytest.raises(ImportRefusedError, match="more than the 10"):
        Dataset(root)


def test_a_deep_json_is_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", (3,))
    (root / "meta/info.json").write_text("[" * 100_000)
    with pytest.raises(ImportRefusedError, match="not readable JSON"):
        Dataset(root)


def test_absurd_episode_lines_are_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", (3,))
    for line in ('{"episode_index": -1, "length": 3}', '{"episode_index": 0, "length": 1e18}', "[]"):
        (root / "meta/episodes.jsonl").write_text(line + "\n")
        with pytest.raises(ImportRefusedError):
            Dataset(root)


def test_clear_meanings_are_imported_and_listed(store: EpisodeStore, tmp_path: Path) -> None:
    root = make_set(
        tmp_path / "set", (4,),
        observation__state=lambda n: pa.array([[r, r + 0.5] for r in range(n)], pa.list_(pa.float64())),
        frame_index=None, index=None, episode_index=None, task_index=None, timestamp=None,
    )  # fmt: skip
    edit_info(root, features={KEY: {"dtype": "video", "shape": [3, 32, 48], "names": ["c", "h", "w"]}})
    report = import_lerobot(root, store)
    episode = store.read(report.imported[0])
    assert episode.streams["observation.state"].values.dtype == "float32"
    assert episode.frames("eye")[0].shape == (32, 48, 3)
    text = " | ".join(report.notes[0])
    for expected in (
        "channels first", "stored as double, info.json says float32", "no timestamp column; index and fps",
        "no frame_index column", "no episode_index, index, task_index column",
    ):  # fmt: skip
        assert expected in text


def _one_value(path: Path, rows: int) -> None:
    """A file of some kilobytes that is ``rows`` equal numbers."""
    pq.write_table(pa.table({"timestamp": pa.array(np.zeros(rows, np.int64))}), path)


def test_few_bytes_that_become_many_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers.parquet"
    _one_value(path, 2_000_000)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(bounds, "GROUP_BYTES", 8_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("was read"))
        with pytest.raises(ImportRefusedError, match="holds 16000000 bytes of numbers"):
            bounds.read(path)
        patch.setattr(bounds, "ROWS", 1_000_000)
        with pytest.raises(ImportRefusedError, match=r"2000000 rows .* more than this program reads"):
            bounds.read(path)
    lists = pa.array([[0.0] * 1000] * 2000, pa.list_(pa.float32()))
    pq.write_table(pa.table({"observation.state": lists, "x": [0] * 2000}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(bounds, "GROUP_BYTES", 7_000_000)
    with pytest.raises(ImportRefusedError, match="bytes of numbers"):
        bounds.read(path, ["observation.state"])
    assert len(bounds.read(path, ["x"])) == 2000


def test_one_large_text_used_many_times_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"note": pa.array(["x" * 100_000] * 3000)}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(bounds, "GROUP_BYTES", 20_000_000)
    with pytest.raises(ImportRefusedError, match="holds more than 20000000 bytes"):
        bounds.read(path)
    monkeypatch.setattr(bounds, "GROUP_BYTES", 400_000_000)
    assert len(bounds.read(path)) == 3000


@pytest.mark.parametrize(
    "name",
    ["meta/info.json", "meta/episodes.jsonl", "data/chunk-000/episode_000000.parquet",
     f"videos/chunk-000/{KEY}/episode_000000.mp4"],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_pipes_and_links_out_of_the_set_are_refused(store: EpisodeStore, tmp_path: Path, name: str) -> None:
    root = make_set(tmp_path / "set", (3,))
    secret = tmp_path / "secret"
    (root / name).rename(secret)
    (root / name).symlink_to(secret)
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match="leads outside the dataset"):
            attempt()
    (root / name).unlink()
    os.mkfifo(root / name)
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match=r"is no plain file|is missing"):
            attempt()
    assert store.ids() == []


def test_a_hugging_face_snapshot_is_read_through_its_links(store: EpisodeStore, tmp_path: Path) -> None:
    """The cache of the hub keeps files in blobs/ and links to them from snapshots/REVISION/."""
    root = make_set(tmp_path / "plain", (3, 4))
    cache = tmp_path / "datasets--someone--set"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abcd"
    for number, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(cache / "blobs" / f"{number:064x}")
        link.symlink_to(os.path.relpath(cache / "blobs" / f"{number:064x}", link.parent))
    assert len(import_lerobot(snapshot, store).imported) == 2
    assert len(convert_v30(snapshot, tmp_path / "new").episodes) == 2
    (snapshot / "meta/tasks.jsonl").unlink()
    (snapshot / "meta/tasks.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(ImportRefusedError, match="leads outside the dataset"):
        Dataset(snapshot)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.5, 2.0], "int64 .*float.* such as 1.5"),
        ([0.0, float("nan"), 2.0], "such as nan"),
        ([0.0, 1e30, 2.0], "such as 1e"),
        ([0.0, None, 2.0], "values are missing"),
    ],
)
def test_whole_numbers_are_never_cut_off(
    store: EpisodeStore, tmp_path: Path, values: list[float | None], expected: str
) -> None:
    root = make_set(tmp_path / "set", (3,), count=lambda n: pa.array(values, pa.float64()))
    edit_info(root, features={"count": {"dtype": "int64", "shape": [1], "names": None}})
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match=expected):
            attempt()


def test_whole_numbers_stored_as_floats_are_a_repair(store: EpisodeStore, tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", (3,), count=lambda n: pa.array([0.0, 1.0, 7.0], pa.float64()))
    edit_info(root, features={"count": {"dtype": "uint8", "shape": [1], "names": None}})
    report = import_lerobot(root, store)
    values = store.read(report.imported[0]).streams["count"].values
    assert (values.tolist(), str(values.dtype)) == ([0, 1, 7], "uint8")
    assert "count is stored as double, info.json says uint8; read as uint8" in report.notes[0]
    _edit_column(root, [0.0, 1.0, 256.0])
    with pytest.raises(ImportRefusedError, match="such as 256"):
        import_lerobot(root, store)


def _edit_column(root: Path, values: list[float]) -> None:
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("count"), "count", pa.array(values)), path)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("timestamp", [0.0, float("nan"), 0.2], "timestamp is nan s in row 1"),
        ("timestamp", [0.0, 1e12, 0.2], "timestamp is 1e"),
        ("timestamp", [0.0, None, 0.2], "timestamp is nan s in row 1"),
        ("frame_index", [0, None, 2], "frame_index .*values are missing"),
        ("frame_index", [0.0, 0.5, 1.0], "frame_index .*such as 0.5"),
        ("task_index", [0.0, 0.5, 1.0], "task_index .*such as 0.5"),
    ],
)
def test_times_and_counters_that_are_none_are_refused(
    store: EpisodeStore, tmp_path: Path, column: str, values: list[Any], expected: str
) -> None:
    made: dict[str, Any] = {column: lambda n: pa.array(values)}
    root = make_set(tmp_path / "set", (3,), **made)
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match=expected):
            attempt()
    assert store.ids() == []


def test_ragged_lists_are_refused(store: EpisodeStore, tmp_path: Path) -> None:
    rows = pa.array([[1.0], [2.0, 3.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    root = make_set(tmp_path / "set", (3,), action=lambda n: rows)
    with pytest.raises(ImportRefusedError, match="lists are of different lengths"):
        import_lerobot(root, store)


def test_a_task_index_in_no_task_list_is_refused_where_there_are_several_tasks(
    store: EpisodeStore, tmp_path: Path
) -> None:
    root = make_set(tmp_path / "set", (3, 3), task_index=lambda n: [99] * n)
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match=r"task_index 99, .* in no task list, .* 2 tasks"):
            attempt()
    assert store.ids() == []
    assert not (tmp_path / "new").exists()


def test_a_task_index_in_no_task_list_is_the_only_task(store: EpisodeStore, tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", (3,), task_index=lambda n: [99] * n)
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "task 0"}\n')
    said = "task_index 99 is in no task list; read as the only task: task 0"
    imported = import_lerobot(root, store)
    assert said in imported.notes[0]
    assert store.read(imported.imported[0]).meta.task == "task 0"
    assert said in convert_v30(root, tmp_path / "new").episode_notes[0]
    new = Dataset(tmp_path / "new")
    assert new.tasks[new.table(new.episodes[0])["task_index"][0].as_py()] == "task 0"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (lambda n: [(n - r) / 10 for r in range(n)], "go back between 19 of 19 pairs"),
        (lambda n: [r / 10 - (0.5 if r % 4 == 0 else 0) for r in range(n)], "go back between 4 of 19 pairs"),
        (lambda n: [0.0] * n, "stand still between 19 of 19 pairs"),
        (lambda n: [r / 5 for r in range(n)], "are 5 a second, info.json says fps 10; correct fps"),
        (lambda n: [r / 12 for r in range(n)], "are 12 a second, info.json says fps 10"),
    ],
)
def test_times_without_a_clear_meaning_are_refused(
    store: EpisodeStore, tmp_path: Path, times: Any, expected: str
) -> None:
    root = make_set(tmp_path / "set", (20,), timestamp=times)
    for attempt in (lambda: import_lerobot(root, store), lambda: convert_v30(root, tmp_path / "new")):
        with pytest.raises(ImportRefusedError, match=expected):
            attempt()
    assert store.ids() == []
    assert not (tmp_path / "new").exists()


def test_gaps_and_isolated_steps_back_are_repairs_and_so_are_totals(
    store: EpisodeStore, tmp_path: Path
) -> None:
    def times(rows: int) -> list[float]:
        return [r / 10 + (3.0 if r > 12 else 0.0) - (0.15 if r == 5 else 0.0) for r in range(rows)]

    root = make_set(tmp_path / "set", (20,), timestamp=times)
    edit_info(root, total_frames=5)
    said = "info.json says total_frames 5, the metadata lists 20"
    imported, converted = import_lerobot(root, store), convert_v30(root, tmp_path / "new")
    assert imported.warnings == [said]
    assert said in converted.repairs
    for notes in (imported.notes[0], converted.episode_notes[0]):
        assert any("2 gaps longer" in note for note in notes), "one of them behind the step back"
        assert any("does not advance between 1 pairs" in note for note in notes)
