"""`ratchet episodes`: shows what is there, names damage, takes datasets in or refuses them in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_helpers import FIXTURES, Toys, ratchet, record, short_of_disk, toy_store

from episodes.spec import EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore

V21 = FIXTURES / "cr5_pick_v21"
real = pytest.mark.skipif(not V21.is_dir(), reason=f"no LeRobot fixture at {V21}")


def test_ls_shows_and_filters(toys: Toys) -> None:
    rows = ratchet("episodes", "ls", "--store", toys.store, "--json").json()
    assert [row["id"] for row in rows] == ["toy-0", "toy-1", "toy-2", "toy-3"]
    assert rows[0]["ticks"] == 24
    some = ratchet("episodes", "ls", "--store", toys.store, "--where", "id >= 'toy-2'", "--limit", 1)
    assert "toy-3" in some.out
    assert "toy-2" not in some.out
    assert "2 episodes" in some.err


def test_show_takes_the_beginning_of_an_id(toys: Toys, tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "s") as store:
        record(store, "20260101-aa")
        record(store, "20260101-ab")
    shown = ratchet("episodes", "show", "20260101-aa", "--store", tmp_path / "s")
    assert "observation.state" in shown.out
    assert "shoulder_pan.pos" in shown.out
    meta = ratchet("episodes", "show", "20260101-ab", "--store", tmp_path / "s", "--json").json()
    assert (meta["ticks"], meta["cameras"]["front"]["frames"]) == (24, 24)
    assert (
        "2 episodes begin with '2026'"
        in ratchet("episodes", "show", "2026", "--store", tmp_path / "s").one_line()
    )
    assert "no episode 'x'" in ratchet("episodes", "show", "x", "--store", toys.store).one_line()


def test_verify_names_the_damaged_file_and_says_1(tmp_path: Path) -> None:
    store = toy_store(tmp_path / "s", 2)
    sound = ratchet("episodes", "verify", "--store", store)
    assert (sound.code, "all sound" in sound.out) == (0, True)
    victim = next((store / "episodes" / "toy-1" / "action").rglob("0*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = ratchet("episodes", "verify", "--store", store)
    assert found.code == 1
    assert str(victim.relative_to(store)) in found.out
    assert "fails its checksum" in found.out
    as_json = ratchet("episodes", "verify", "--store", store, "--json")
    assert (as_json.code, as_json.json()["ok"]) == (1, False)
    assert ratchet("episodes", "verify", "--store", store, "--quick").code == 0, "only sizes are looked at"


def test_recover_puts_a_store_in_order(tmp_path: Path) -> None:
    store = toy_store(tmp_path / "s", 2)
    assert "nothing to do" in ratchet("episodes", "recover", "--store", store).out
    (store / "catalogue.sqlite").write_bytes(b"no database")
    assert ratchet("episodes", "ls", "--store", store).code == 2
    done = ratchet("episodes", "recover", "--store", store)
    assert (done.code, done.out.count("added to the catalogue again")) == (0, 2)
    assert len(ratchet("episodes", "ls", "--store", store, "--json").json()) == 2


def test_recover_says_1_when_an_episode_is_lost(tmp_path: Path) -> None:
    store = toy_store(tmp_path / "s", 2)
    shutil.rmtree(store / "episodes" / "toy-0")
    done = ratchet("episodes", "recover", "--store", store)
    assert (done.code, "toy-0: MISSING" in done.out) == (1, True)


def test_ls_takes_a_whole_select(toys: Toys) -> None:
    sql = "SELECT id FROM episodes ORDER BY id DESC LIMIT 2"
    rows = ratchet("episodes", "ls", "--store", toys.store, "--where", sql, "--json").json()
    every = ratchet("episodes", "ls", "--store", toys.store, "--json").json()
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in every)[-2:]


def test_a_wrong_condition_and_a_missing_store_are_one_line(toys: Toys, tmp_path: Path) -> None:
    line = ratchet("episodes", "ls", "--store", toys.store, "--where", "ticks >").one_line()
    assert "syntax error" in line
    for verb in (["ls"], ["verify"], ["recover"], ["show", "x"], ["query", "SELECT 1"]):
        line = ratchet("episodes", *verb, "--store", tmp_path / "none").one_line()
        assert f"no episode store in {tmp_path / 'none'}" in line
    assert not (tmp_path / "none").exists()


def test_a_folder_of_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    line = ratchet("episodes", "import", _dataset(tmp_path / "d"), "--store", tmp_path).one_line()
    assert "is not empty and not an episode store" in line
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"


# ---- import -------------------------------------------------------------------------------------


@real
def test_a_real_dataset_is_imported_once(tmp_path: Path) -> None:
    wanted = (
        "episodes",
        "import",
        V21,
        "--store",
        tmp_path / "s",
        "--image-size",
        "48x64",
        "--episodes",
        "5,12",
    )
    first = ratchet(*wanted)
    assert "imported 2 episodes, 407 frames" in first.out
    assert "episode 12: timestamps drift" in first.err
    again = ratchet(*wanted, "--json").json()
    assert (again["imported"], again["skipped"]) == ({}, [5, 12])
    rows = ratchet("episodes", "ls", "--store", tmp_path / "s", "--json").json()
    assert {(r["robot"], r["kind"], r["cameras"]) for r in rows} == {("cr5", "import", "top")}


@real
def test_a_missing_video_is_refused_by_name_and_may_be_left_out(tmp_path: Path) -> None:
    root = tmp_path / "d"
    shutil.copytree(V21, root, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("*12.mp4"))
    wanted = (
        "episodes",
        "import",
        root,
        "--store",
        tmp_path / "s",
        "--image-size",
        "48x64",
        "--episodes",
        "12",
    )
    line = ratchet(*wanted).one_line()
    assert "episode_000012.mp4" in line
    assert "missing" in line
    done = ratchet(*wanted, "--allow-missing-video")
    assert done.code == 0
    assert "camera top is left out" in done.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--image-size", "96"], "'96' is not HEIGHTxWIDTH"),
        (["--episodes", "5-1"], "'5-1' is not a list of episodes"),
        (["--episodes", "7"], "has no episode 7"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    source = _dataset(tmp_path / "d")
    assert expected in ratchet("episodes", "import", source, "--store", tmp_path / "s", *options).one_line()


def test_what_is_no_dataset_is_refused_before_a_store_is_made(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    line = ratchet("episodes", "import", tmp_path / "d", "--store", tmp_path / "s").one_line()
    assert "info.json is missing" in line
    assert not (tmp_path / "s").exists()


def test_a_full_disk_is_one_line_and_leaves_a_sound_store(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same calls fail."""
    source = _dataset(tmp_path / "d", rows=20_000)
    store = toy_store(tmp_path / "s", 1)
    limited = short_of_disk(400_000, "episodes", "import", source, "--store", store)
    assert limited.returncode == 2
    assert "Traceback" not in limited.stderr
    last = limited.stderr.strip().splitlines()[-1]
    assert last.startswith("ratchet: ")
    assert "space" in last
    assert ratchet("episodes", "verify", "--store", store).code == 0
    assert ratchet("episodes", "import", source, "--store", store, "--json").json()["imported"] != {}
    assert len(ratchet("episodes", "ls", "--store", store, "--json").json()) == 2


def _dataset(root: Path, rows: int = 4) -> Path:
    """A LeRobot v2.1 dataset of one episode without pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = {
        "codebase_version": "v2.1", "robot_type": "koch", "fps": 30, "chunks_size": 1000,
        "total_episodes": 1, "total_frames": rows, "data_path": "data/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": {"observation.state": {"dtype": "float32", "shape": [2], "names": ["a", "b"]}},
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "look"}\n')
    episode = {"episode_index": 0, "tasks": ["look"], "length": rows}
    (root / "meta" / "episodes.jsonl").write_text(json.dumps(episode) + "\n")
    columns = {
        "observation.state": [[i, i + 0.5] for i in range(rows)],
        "timestamp": [i / 30 for i in range(rows)],
        "frame_index": list(range(rows)),
        "episode_index": [0] * rows,
        "task_index": [0] * rows,
    }
    pq.write_table(pa.table(columns), root / "data" / "episode_000000.parquet")
    return root


def test_flags_and_take_overs_are_shown(tmp_path: Path) -> None:
    spec = EpisodeSpec(task="toy", streams=(StreamSpec(name="action", shape=(2,)),), kind="rollout")
    with EpisodeStore.open(tmp_path / "s") as store:
        writer = store.begin(spec, episode_id="flagged", started_ns=0)
        for tick in range(4):
            writer.append("action", tick * 10**9, tick, [0.0, 0.0])
        writer.flag("stall", 10**9, 2 * 10**9, 1.5, {"joint": "elbow_flex"})
        writer.intervention(2 * 10**9, 3 * 10**9, "anna")
        writer.end("failure", "stalled").wait(10)
    shown = ratchet("episodes", "show", "flagged", "--store", tmp_path / "s").out
    assert "stall" in shown
    assert "elbow_flex" in shown
    assert "anna" in shown
    assert "failure (stalled)" in shown
