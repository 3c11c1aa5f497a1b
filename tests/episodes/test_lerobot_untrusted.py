"""Somebody else's set: sizes and format strings are looked at before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lerobot_helpers import KEY, edit_info, make_set

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
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
