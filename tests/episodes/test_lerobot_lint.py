"""The linter finds what was done to a set, and nothing in one that is sound."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from episode_helpers import LOSSLESS, SPEC, TICK_NS, picture, record_episode, state
from lerobot_helpers import H264, KEY, edit_info, frame, make_set

from episodes.errors import StoreError
from episodes.lerobot.convert import convert_v30
from episodes.lerobot.encode import encode_video
from episodes.lerobot.lint import LintReport, lint
from episodes.store import EpisodeStore
from tools.commands import episodes_lint
from tools.commands.episodes_lint import command

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
V21, V30 = FIXTURES / "cr5_pick_v21", FIXTURES / "cr5_pick_v30"
real = pytest.mark.skipif(not V21.is_dir() or not V30.is_dir(), reason=f"no LeRobot fixtures in {FIXTURES}")


def checks(report: LintReport) -> set[str]:
    """Which checks found something."""
    return {f.check for f in report.findings}


@real
def test_the_real_sets() -> None:
    old, new = lint(V21, pictures=False), lint(V30, pictures=False)
    assert (old.episodes, old.rows, new.episodes, new.rows) == (20, 4499, 20, 4499)
    drift = [f for f in old.findings if f.check == "drift"]
    assert len(drift) == 20, "each episode's timestamps are wall clock"
    assert any("drift up to 2.170 s" in f.text for f in drift)
    assert new.findings == []
    assert not {"stuck"} & (checks(old) | checks(new))


def test_sound_sets_are_sound(tmp_path: Path) -> None:
    old = make_set(tmp_path / "old")
    convert_v30(old, tmp_path / "new")
    for root in (old, tmp_path / "new"):
        report = lint(root)
        assert report.findings == []
        assert (report.episodes, report.rows, report.pictures) == (3, 19, 19)


def _edit(root: Path, episode: int, **columns: Any) -> None:
    path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.schema.get_field_index(name.replace("__", "."))
        field = table.schema.field(at)
        array = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        table = table.set_column(at, field.name, array)
    pq.write_table(table, path)


def _drift(root: Path) -> None:
    _edit(root, 1, timestamp=[r * 0.104 for r in range(9)])


def _gap(root: Path) -> None:
    _edit(root, 1, timestamp=[r / 10 + (0.3 if r > 4 else 0) for r in range(9)])


def _backwards(root: Path) -> None:
    _edit(root, 1, timestamp=[0, 0.1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8])


def _nan(root: Path) -> None:
    _edit(root, 1, action=[[float("nan"), 0.0]] + [[r, r] for r in range(8)])


def _double(root: Path) -> None:
    _edit(root, 1, action=pa.array([[float(r), 0.5] for r in range(9)], pa.list_(pa.float64())))


def _counter(root: Path) -> None:
    _edit(root, 1, index=[6, 7, 8, 9, 11, 12, 13, 14, 15])


def _stuck(root: Path) -> None:
    rows = [[1.0, r] for r in range(12)]
    path = make_set(root.with_name("stuck"), (12,))
    _edit(path, 0, observation__state=rows)
    shutil.rmtree(root)
    path.rename(root)


def _video(root: Path, pictures: list[Any]) -> None:
    encode_video(root / f"videos/chunk-000/{KEY}/episode_000001.mp4", 10, H264, [pictures])


def _black(root: Path) -> None:
    _video(root, [frame(1, r) if r != 4 else np.zeros((32, 48, 3), np.uint8) for r in range(9)])


def _frozen(root: Path) -> None:
    _video(root, [np.full((32, 48, 3), 90, np.uint8)] * 9)


def _short(root: Path) -> None:
    _video(root, [frame(1, r) for r in range(7)])


def _no_video(root: Path) -> None:
    (root / f"videos/chunk-000/{KEY}/episode_000001.mp4").unlink()


def _size(root: Path) -> None:
    edit_info(root, features={KEY: {"dtype": "video", "shape": [48, 32, 3]}})


def _totals(root: Path) -> None:
    edit_info(root, total_frames=20)


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (_drift, "drift", "drift up to 0.032 s"),
        (_gap, "gaps", "1 gaps longer than 1.5 periods, the longest 0.400 s after row 4"),
        (_backwards, "timestamps", "does not advance between 1 pairs"),
        (_nan, "missing", "action is not finite in 1 rows, first row 0 [0]"),
        (_double, "dtype", "action is double, info.json says float32"),
        (_counter, "indices", "index does not count up by one"),
        (_stuck, "stuck", "a.pos stays at 1 while its action moves by 11"),
        (_black, "black", "1 black pictures, the first in row 4"),
        (_frozen, "frozen", "stands still for 9 rows"),
        (_short, "video", "7 frames in the video, 9 rows"),
        (_no_video, "video", "episode_000001.mp4 is missing"),
        (_size, "video", "48×32 in the video, 32×48 in info.json"),
        (_totals, "totals", "info.json says total_frames 20, the metadata lists 19"),
    ],
)
def test_what_is_wrong_is_found_and_named(
    tmp_path: Path, change: Callable[[Path], None], check: str, words: str
) -> None:
    root = make_set(tmp_path / "set")
    change(root)
    report = lint(root)
    found = [f for f in report.findings if f.check == check]
    assert any(words in f.text for f in found), report.findings
    assert all(f.episode in ("", "episode 1", "episode 0", "episode 2") for f in found)


def test_actions_outside_limits(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    report = lint(root, limits={"a.pos": (0.0, 5.0), "b.pos": (-100.0, 100.0)}, pictures=False)
    assert [(f.check, f.severity, f.episode) for f in report.findings] == [
        ("limits", "error", "episode 0"), ("limits", "error", "episode 1"),
    ]  # fmt: skip
    assert "a.pos is outside 0…5 in 1 rows, the first in row 5: 5.25" in report.findings[0].text


def test_limits_of_columns_that_are_not_there_are_refused(store: EpisodeStore, tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    with pytest.raises(StoreError, match=r"has a column 'a\.pso'; did you mean 'a\.pos'\?"):
        lint(root, limits={"a.pso": (0.0, 1.0)}, pictures=False)
    with pytest.raises(StoreError, match=r"its columns: a\.pos, b\.pos"):
        lint(root, limits={"zzz": (0.0, 1.0)}, pictures=False)
    record_episode(store, 6)
    with pytest.raises(StoreError, match=r"has a column '\[9\]'"):
        lint(store.root, limits={"[9]": (0.0, 1.0)}, pictures=False)
    report = lint(store.root, limits={"[1]": (0.0, 1.0)}, pictures=False)
    assert any("action [1] is outside 0…1" in f.text for f in report.findings)


def test_a_store_is_judged_by_its_real_times(store: EpisodeStore) -> None:
    record_episode(store, 6)  # up to 5 + 0.5 + 5 rad: its last action is outside, nothing else is odd
    writer = store.begin(SPEC, started_ns=0, config=LOSSLESS)
    for tick in range(24):
        t_ns = tick * TICK_NS + (200_000_000 if tick > 9 else 0)
        writer.append("observation.state", t_ns, tick, state(tick))
        writer.append("action", t_ns, tick, state(tick) * 10)
        writer.append_frame("front", t_ns, tick, picture(min(tick, 12)), repeated=tick == 13)
    bad = writer.end("success").wait().id
    store.sync()
    report = lint(store.root)
    other = {f.check for f in report.findings if f.episode != bad}
    assert other == {"limits"}, "an action beyond a turn"
    assert checks(report) == {"gaps", "limits", "repeated", "frozen"}
    assert any("10 pictures equal the one before, the first in row 14" in f.text for f in report.findings)


def test_exit_code_and_json(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    sound = CliRunner().invoke(command, [str(root), "--json"])
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["ok"] is True
    _short(root)
    broken = CliRunner().invoke(command, [str(root), "--json"])
    assert broken.exit_code == 1
    assert "error video" in json.loads(broken.stdout)["counts"]
    assert "LOW:HIGH" in CliRunner().invoke(command, [str(root), "--limit", "a"]).output
    assert "LOW:HIGH" in CliRunner().invoke(command, [str(root), "--limit", "a.pos=1:nan"]).output
    fine = CliRunner().invoke(command, [str(root), "--limit", "a.pos=-1e-3:1E2", "--no-pictures", "--json"])
    assert json.loads(fine.stdout)["counts"] == {"error video": 1}


def test_a_condition_is_for_stores(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    with pytest.raises(StoreError, match="no episode store: there is no catalogue"):
        lint(root, where="outcome = 'success'", pictures=False)


@pytest.mark.parametrize(("moves", "found"), [("noise", True), ("smoothly", False), ("follows", False)])
def test_a_joint_that_stands_still_but_for_noise(tmp_path: Path, moves: str, found: bool) -> None:
    rows = 60
    asked = np.sin(np.arange(rows) / 5)
    seen = {
        "noise": 0.3 + np.random.default_rng(0).normal(0, 1e-4, rows),
        "smoothly": 1e-3 * np.sin(np.arange(rows) / 5 - 0.4),  # in another unit
        "follows": asked + np.random.default_rng(0).normal(0, 1e-2, rows),
    }[moves]
    root = make_set(tmp_path / "set", (rows,))
    _edit(root, 0, action=[[a, r] for r, a in enumerate(asked)])
    _edit(root, 0, observation__state=[[s, r] for r, s in enumerate(seen)])
    stuck = [f.text for f in lint(root, pictures=False).findings if f.check == "stuck"]
    assert bool(stuck) == found, stuck
    assert not found or "a.pos stays at 0.3" in stuck[0]


def test_progress_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set and of a store; and the bar of the command gets both numbers."""
    root = make_set(tmp_path / "set")
    told: list[tuple[int, int]] = []
    lint(root, pictures=False, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with EpisodeStore.open(tmp_path / "store") as store:
        first, *_ = [record_episode(store, 5, name) for name in ("a", "b", "c")]
    told.clear()
    lint(tmp_path / "store", where="id > 'a'", progress=lambda done, total: told.append((done, total)))
    assert (first, told) == ("a", [(1, 2), (2, 2)])
    seen: list[tuple[int, int]] = []

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Any]:
        yield lambda done, note="", total=None: seen.append((done, total))

    monkeypatch.setattr(episodes_lint, "bar", bar)
    CliRunner().invoke(command, [str(root), "--no-pictures"])
    assert seen == [(1, 3), (2, 3), (3, 3)]
