"""v2.1 to v3.0: every row and packet arrives, whatever happens on the way, and nothing arrives twice."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from lerobot_helpers import H264, KEY, edit_info, frame, make_set

from episodes.errors import ImportRefusedError
from episodes.lerobot.convert import ConvertOptions, ConvertProgress, convert_v30
from episodes.lerobot.layout import Dataset
from episodes.lerobot.plan import Limits
from episodes.lerobot.v30 import STAGING as NAME
from episodes.lerobot.video import video_frames
from tools.commands.episodes_convert import command

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
V21, V30 = FIXTURES / "cr5_pick_v21", FIXTURES / "cr5_pick_v30"
real = pytest.mark.skipif(not V21.is_dir() or not V30.is_dir(), reason=f"no LeRobot fixtures in {FIXTURES}")
LIKE_THE_FIXTURE = Limits(1, 12)


def packets(path: Path) -> list[bytes]:
    """The compressed frames of a video."""
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


def same_rows(root: Path, other: Path, keys: list[str]) -> None:
    """Two v3.0 sets have the same rows."""
    one, two = (pa.concat_tables([pq.read_table(f) for f in sorted((r / "data").rglob("*.parquet"))])
                for r in (root, other))  # fmt: skip
    for key in keys:
        np.testing.assert_array_equal(np.asarray(one[key].to_pylist()), np.asarray(two[key].to_pylist()))


@real
def test_a_real_set_becomes_what_lerobots_own_converter_made_of_it(tmp_path: Path) -> None:
    seen: list[ConvertProgress] = []
    report = convert_v30(V21, tmp_path / "new", ConvertOptions(limits=LIKE_THE_FIXTURE), seen.append)
    assert report.errors == []
    assert (report.rows, report.frames) == (4499, {"observation.images.top": 4499})
    assert seen[-1] == ConvertProgress("episodes copied", 40, 40)
    mine, theirs = tmp_path / "new", V30
    keys = ["observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"]
    same_rows(mine, theirs, keys)
    columns = ["dataset_from_index", "dataset_to_index", "length", "tasks"]
    columns += [f"videos/observation.images.top/{c}" for c in ("chunk_index", "file_index")]
    one, two = (pq.read_table(r / "meta/episodes/chunk-000/file-000.parquet") for r in (mine, theirs))
    for column in columns:
        assert one[column].to_pylist() == two[column].to_pylist(), column
    for column in ("from_timestamp", "to_timestamp"):
        name = f"videos/observation.images.top/{column}"
        np.testing.assert_allclose(one[name].to_pylist(), two[name].to_pylist(), atol=1e-9)
    for video in sorted((theirs / "videos").rglob("*.mp4")):
        assert packets(mine / video.relative_to(theirs)) == packets(video)
    stats, other = (json.loads((r / "meta/stats.json").read_text()) for r in (mine, theirs))
    for key in keys[:2]:
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stats[key][name], other[key][name], rtol=1e-4, atol=1e-6)
    table = pq.read_table(mine / "data/chunk-000/file-000.parquet").slice(0, 197)
    source = pq.read_table(V21 / "data/chunk-000/episode_000000.parquet")
    original = np.round(np.asarray(source["timestamp"].to_pylist()) * 1e9)
    np.testing.assert_array_equal(table["capture_time_ns"].to_numpy(), original)
    assert "timestamps are up to 2.170 s off" in report.repairs[0]


def test_the_report_tells_what_is_in_a_set(tmp_path: Path) -> None:
    """Distributions before and after, missing values, outliers, sizes; for a person and for a program."""
    rows = [[0.0, float(r)] for r in range(100)]
    rows[7], rows[50] = [float("nan"), 7.0], [90.0, 50.0]
    old = make_set(tmp_path / "old", (100,), action=lambda n: pa.array(rows, pa.list_(pa.float32(), 2)))
    report = convert_v30(old, tmp_path / "new")
    state, action = report.features["observation.state"], report.features["action"]
    assert (state.before, state.missing, state.outliers) == (state.after, 0, 0)
    assert (state.after["min"], state.after["max"], state.after["mean"]) == ([0, 0.5], [99, 99.5], [49.5, 50])
    np.testing.assert_allclose(state.after["std"], np.std(np.arange(100)))
    assert (action.missing, action.outliers) == (1, 1)
    assert action.outlier_first == "episode 0 row 50 [0] = 90"
    assert report.dimensions == {"observation.state": "2", "action": "2", KEY: "32x48"}
    assert any("not finite in 1 rows" in n for n in report.episode_notes[0])
    shown = CliRunner().invoke(command, [str(old), str(tmp_path / "other")])
    assert shown.exit_code == 0, shown.output
    for words in ("100 frames for 100 rows, 32x48", "µs off index/fps", "all 3 features are there",
                  "episode 0 row 50 [0] = 90", "read back and compared: they agree",
                  f"not decoded; `ratchet episodes lint {tmp_path / 'other'}` does"):  # fmt: skip
        assert words in shown.output


def test_videos_are_found_where_the_metadata_says(tmp_path: Path) -> None:
    convert_v30(make_set(tmp_path / "old", stats=True), tmp_path / "new")
    new = Dataset(tmp_path / "new")
    assert new.version == "v3.0"
    for index, episode in new.episodes.items():
        span = episode.videos[KEY]
        pictures = list(video_frames(span.path, span.start_s, episode.length, 10, (32, 48)))
        for row, picture in enumerate(pictures):
            assert np.abs(picture.astype(int) - frame(index, row)).mean() < 6, (index, row)
    assert new.tasks == {0: "task 0", 1: "task 1"}
    assert new.table(new.episodes[1])["task_index"].to_pylist() == [1] * 9
    assert not (tmp_path / "new" / NAME).exists()


def test_new_episodes_are_added_and_nothing_twice(tmp_path: Path) -> None:
    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    first = convert_v30(old, new, ConvertOptions(episodes=(0, 1)))
    before = {p: p.read_bytes() for p in sorted(new.rglob("*")) if p.suffix in (".mp4", ".parquet")}
    second = convert_v30(old, new)
    assert (first.episodes, second.episodes, second.skipped) == ({0: 0, 1: 1}, {2: 2}, [0, 1])
    for path, data in before.items():
        assert path.name == "tasks.parquet" or path.read_bytes() == data, "old files are left alone"
    info = json.loads((new / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (3, 19, {"train": "0:3"})
    whole = tmp_path / "whole"
    convert_v30(old, whole)
    same_rows(new, whole, ["observation.state", "index", "episode_index", "task_index", "timestamp"])
    stats, other = (json.loads((r / "meta/stats.json").read_text()) for r in (new, whole))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(stats["action"][name], other["action"][name])
    assert convert_v30(old, new).episodes == {}


def test_another_kind_of_set_is_not_mixed_in(tmp_path: Path) -> None:
    convert_v30(make_set(tmp_path / "old"), tmp_path / "new")
    other = make_set(tmp_path / "other", (5,), fps=20)
    with pytest.raises(ImportRefusedError, match="frames a second"):
        convert_v30(other, tmp_path / "new")
    more = make_set(tmp_path / "more", (5,), next__reward=lambda n: pa.array([0.5] * n, pa.float32()))
    edit_info(more, features={"next.reward": {"dtype": "float32", "shape": [1], "names": None}})
    with pytest.raises(ImportRefusedError, match=r"next\.reward is float32"):
        convert_v30(more, tmp_path / "new")


def test_files_end_at_their_limit_and_where_tracks_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_set(tmp_path / "old", (6, 6, 6, 6))
    monkeypatch.setattr("episodes.lerobot.plan.FILE_SECONDS", 1.3)  # two episodes of 0.6 s
    report = convert_v30(old, tmp_path / "new")
    assert report.frames == {KEY: 24}
    names = [p.name for p in sorted((tmp_path / "new/videos").rglob("*.mp4"))]
    assert names == ["file-000.mp4", "file-001.mp4"]
    last = Dataset(tmp_path / "new").episodes[3].videos[KEY]
    assert (last.path.name, last.start_s) == ("file-001.mp4", 0.6)


def test_episodes_with_the_same_extremes_are_not_the_same(tmp_path: Path) -> None:
    """Recognised by what is in the files, not by their footers."""
    old, new = make_set(tmp_path / "old", (6, 6)), tmp_path / "new"
    for folder in (old / "videos",):
        shutil.rmtree(folder)
    options = ConvertOptions(allow_missing_video=True)
    convert_v30(old, new, options)
    path = old / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[2], rows[3] = rows[3], rows[2]
    column = table.schema.get_field_index("action")
    pq.write_table(
        table.set_column(column, table.schema.field(column), pa.array(rows, table.schema.field(column).type)),
        path,
    )
    again = convert_v30(old, new, options)
    assert (again.episodes, again.skipped) == ({1: 2}, [0])


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    new.mkdir()
    (new / "thesis.txt").write_text("all of it")
    with pytest.raises(ImportRefusedError, match=r"not empty .*thesis\.txt"):
        convert_v30(old, new)
    assert [p.name for p in new.iterdir()] == ["thesis.txt"]


def test_videos_are_encoded_again_only_when_asked(tmp_path: Path) -> None:
    old = make_set(tmp_path / "old")
    convert_v30(old, tmp_path / "copied")
    convert_v30(old, tmp_path / "encoded", ConvertOptions(encode=H264))
    source = [p for i in range(3) for p in packets(old / f"videos/chunk-000/{KEY}/episode_{i:06d}.mp4")]
    path = f"videos/{KEY}/chunk-000/file-000.mp4"
    assert packets(tmp_path / "copied" / path) == source
    assert packets(tmp_path / "encoded" / path) != source
    assert len(packets(tmp_path / "encoded" / path)) == 19
    info = json.loads((tmp_path / "encoded/meta/info.json").read_text())
    assert info["features"][KEY]["info"]["video.codec"] == "h264"


def test_one_episode_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the set: the rows of an episode are let go before the next are read."""
    alive: list[weakref.ref[Any]] = []
    most = 0
    read = Dataset.rows

    def watched(self: Dataset, episode: Any) -> Any:
        nonlocal most
        table = read(self, episode)
        alive.append(weakref.ref(table))
        most = max(most, sum(ref() is not None for ref in alive))
        return table

    monkeypatch.setattr(Dataset, "rows", watched)
    convert_v30(make_set(tmp_path / "old", (3,) * 25), tmp_path / "new", ConvertOptions(workers=1))
    assert len(alive) == 25
    assert most <= 2


def _drop_video(root: Path) -> None:
    (root / f"videos/chunk-000/{KEY}/episode_000001.mp4").unlink()


def _short_video(root: Path) -> None:
    videos = root / f"videos/chunk-000/{KEY}"
    shutil.copy(videos / "episode_000002.mp4", videos / "episode_000001.mp4")


def _broken_video(root: Path) -> None:
    path = root / f"videos/chunk-000/{KEY}/episode_000001.mp4"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_drop_video, r"episode_000001\.mp4 is missing; .*\(--allow-missing-video\)"),
        (_short_video, "has 4 frames for 9 rows of episode 1"),
        (_broken_video, r"episode_000001\.mp4 cannot be read"),
        (lambda r: edit_info(r, features={KEY: {"dtype": "video", "shape": [64, 48, 3]}}), "says 48×64"),
        (lambda r: edit_info(r, fps=29.97), "v3.0 counts whole ones"),
        (lambda r: (r / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1"), "not a readable"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path, change: Any, expected: str) -> None:
    old = make_set(tmp_path / "old")
    change(old)
    with pytest.raises(ImportRefusedError, match=expected):
        convert_v30(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_clear_meanings_are_repaired_and_listed(tmp_path: Path) -> None:
    """list<double>, no counters, channels first, a camera without videos: read, and each said."""
    old = make_set(
        tmp_path / "old",
        observation__state=lambda n: pa.array([[r, r + 0.5] for r in range(n)], pa.list_(pa.float64())),
        frame_index=None, index=None, episode_index=None, task_index=None,
    )  # fmt: skip
    _drop_video(old)
    edit_info(old, features={KEY: {"dtype": "video", "shape": [3, 32, 48], "names": ["c", "h", "w"]}})
    report = convert_v30(old, tmp_path / "new", ConvertOptions(allow_missing_video=True))
    text = " | ".join([*report.repairs, *report.episode_notes[0]])
    for expected in (
        "channels first (3, 32, 48); read as (32, 48, 3)",
        f"{KEY} is left out: 1 episodes do not have it",
        "observation.state is stored as double, info.json says float32",
        "no episode_index, index, task_index column",
        "no frame_index column",
    ):
        assert expected in text
    new = Dataset(tmp_path / "new")
    table = new.table(new.episodes[1])
    assert table["index"].to_pylist() == list(range(6, 15))
    assert str(table.schema.field("observation.state").type).startswith("fixed_size_list<element: float>")
