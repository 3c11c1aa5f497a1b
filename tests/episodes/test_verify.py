"""Verify names every damaged file; opening repairs what can be repaired and promises nothing else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from episode_helpers import record_episode

from episodes.errors import DamagedError, StoreFormatError
from episodes.store import EpisodeStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "store"
    with EpisodeStore.open(root) as store:
        for name in ("a", "b"):
            record_episode(store, 12, name)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in (root / "episodes" / "a").rglob("*") if p.is_file())


def damages(root: Path, deep: bool = True) -> list[str]:
    with EpisodeStore.open(root, mode="r") as store:
        return [d.file for d in store.verify(deep).damages]


def test_a_sound_store_verifies(root: Path) -> None:
    with EpisodeStore.open(root, mode="r") as store:
        report = store.verify()
    assert report.ok
    assert (report.episodes, report.deep) == (2, True)
    assert report.files == 2 * len(files_of(root))


def test_every_flipped_bit_is_found_and_its_file_named(root: Path) -> None:
    rng = random.Random(1)
    for path in files_of(root):
        original = path.read_bytes()
        for _ in range(4):
            flipped = bytearray(original)
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            assert damages(root) == [str(path.relative_to(root))]
        path.write_bytes(original)
    assert damages(root) == []


@pytest.mark.parametrize("deep", [True, False])
def test_missing_truncated_and_foreign_files_are_named(root: Path, deep: bool) -> None:
    for path in files_of(root):
        original = path.read_bytes()
        path.unlink()
        assert damages(root, deep) == [str(path.relative_to(root))]
        path.write_bytes(original[:-1])
        assert damages(root, deep) == [str(path.relative_to(root))]
        path.write_bytes(original)
    (root / "episodes" / "a" / "action" / "1.0").write_bytes(b"extra")
    assert damages(root, deep) == ["episodes/a/action/1.0"]


def test_a_missing_episode_is_named(root: Path) -> None:
    shutil.rmtree(root / "episodes" / "a")
    assert damages(root) == ["episodes/a"]
    with EpisodeStore.open(root) as store:
        assert store.recovery.missing == ["a"]
        assert [d.problem for d in store.verify().damages] == ["is missing"]
        store.delete("a")
        assert store.verify().ok


def test_swapped_episodes_are_noticed(root: Path) -> None:
    episodes = root / "episodes"
    (episodes / "a").rename(episodes / "x")
    (episodes / "b").rename(episodes / "a")
    (episodes / "x").rename(episodes / "b")
    assert damages(root) == ["episodes/a/episode.json", "episodes/b/episode.json"]


def test_reading_damaged_data_is_an_error_not_a_fill_value(root: Path) -> None:
    with EpisodeStore.open(root, mode="r") as store:
        (root / "episodes" / "a" / "action" / "0.0").unlink()
        with pytest.raises(DamagedError, match=r"action/0\.0 is damaged"):
            store.read("a").streams["action"]
        chunk = root / "episodes" / "a" / "observation.state" / "0.0"
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 4
        chunk.write_bytes(data)
        with pytest.raises(DamagedError, match="checksum"):
            store.read("a").streams["observation.state"]
        blob = root / "episodes" / "a" / "frames.front" / "0"
        data = bytearray(blob.read_bytes())
        data[10] ^= 4
        blob.write_bytes(data)
        frames = store.read("a").frames("front")
        with pytest.raises(DamagedError, match="frame 0"):
            frames[0]
        assert frames[5].shape == (24, 32, 3)
        (root / "episodes" / "a" / "episode.json").write_text("{}")
        with pytest.raises(DamagedError, match=r"episode\.json"):
            store.read("a")


@pytest.mark.parametrize("how", ["missing", "garbage", "truncated", "page"])
def test_the_catalogue_is_rebuilt_from_the_markers(root: Path, how: str) -> None:
    path = root / "catalogue.sqlite"
    with EpisodeStore.open(root, mode="r") as store:
        before = store.query("SELECT * FROM episodes ORDER BY id")
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "garbage":
        path.write_bytes(random.Random(0).randbytes(8192))
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "page":
        data[4096:] = bytes(len(data) - 4096)
        path.write_bytes(data)
    if how == "missing":
        with pytest.raises(StoreFormatError, match="missing"):
            EpisodeStore.open(root, mode="r")
    with EpisodeStore.open(root) as store:
        assert store.recovery.recatalogued == ["a", "b"]
        assert store.query("SELECT * FROM episodes ORDER BY id") == before
        assert store.verify().ok


def test_an_uncatalogued_episode_that_fails_its_checksum_is_set_aside(root: Path) -> None:
    (root / "catalogue.sqlite").unlink()
    chunk = root / "episodes" / "a" / "action" / "0.0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with EpisodeStore.open(root) as store:
        assert store.recovery.damaged == ["a"]
        assert store.ids() == ["b"]
        assert store.verify().ok
    assert (root / "damaged" / "a" / "episode.json").is_file()


def test_half_written_groups_are_removed(root: Path) -> None:
    shutil.copytree(root / "episodes" / "a", root / "episodes" / "c.partial")
    with EpisodeStore.open(root) as store:
        assert store.recovery.partial_removed == 1
        assert store.ids() == ["a", "b"]
    assert not (root / "episodes" / "c.partial").exists()


@pytest.mark.parametrize("torn", [False, True])
def test_group_durability_trusts_nothing_it_did_not_sync(tmp_path: Path, torn: bool) -> None:
    """Killed before sync(): what reached the disk whole is kept, what did not is found out at once."""
    with EpisodeStore.open(tmp_path / "s", durability="group") as store:
        record_episode(store, 12, "synced")
        store.sync()
        record_episode(store, 12, "unsynced")
        shutil.copytree(store.root, tmp_path / "after")
    if torn:  # a power cut: the name is there, the bytes are not
        chunk = tmp_path / "after" / "episodes" / "unsynced" / "action" / "0.0"
        chunk.write_bytes(b"")
    with EpisodeStore.open(tmp_path / "after") as after:
        assert after.ids() == (["synced"] if torn else ["synced", "unsynced"])
        assert after.recovery.damaged == (["unsynced"] if torn else [])
        assert after.verify().ok
        assert after.select("NOT durable") == []
