"""A copy that is damaged, gone or another's no longer counts, before anything can be deleted for it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from episode_helpers import record_episode

from episodes.copies import Notes, mark_synced, place
from episodes.errors import DamagedError, RecordingError
from episodes.retention import prune
from episodes.store import EpisodeStore
from episodes.sync import Receiver, send
from tools.commands.episodes import episodes

ROOT = Path(__file__).parents[2]
IDS = ["e0", "e1", "e2"]


def damage(root: Path, name: str) -> None:
    """Another byte in one of the episode's files."""
    victim = next((root / "episodes" / name / "action").rglob("0*"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)


def synced(store: EpisodeStore) -> dict[str, str | None]:
    return {str(i): where for i, where in store.catalogue.select("SELECT id, synced FROM episodes")}


def sync(store: EpisodeStore, destination: str | Path, *options: str) -> Result:
    return CliRunner().invoke(episodes, ["sync", str(destination), "--store", str(store.root), *options])


@pytest.fixture
def other(store: EpisodeStore, tmp_path: Path) -> Path:
    """Where three episodes of ``store`` have been copied to."""
    for name in IDS:
        record_episode(store, 5, episode_id=name)
    folder = tmp_path / "other"
    assert sync(store, folder).exit_code == 0
    assert synced(store) == dict.fromkeys(IDS, str(folder))
    return folder


def test_a_damaged_copy_is_said_and_does_not_count_and_the_others_are_copied(
    store: EpisodeStore, other: Path
) -> None:
    damage(other, "e0")
    record_episode(store, 5, episode_id="e3")
    done = sync(store, other)
    assert done.exit_code == 1
    assert f"episode e0 in {other} is damaged (action/" in done.output
    assert "1 episodes copied" in done.output
    assert "2 were there; 3 checked" in done.output
    assert synced(store) == {"e0": None, "e1": str(other), "e2": str(other), "e3": str(other)}
    assert prune(store, 0).deleted == ("e1", "e2", "e3")
    assert store.ids() == ["e0"]
    assert store.verify().ok, "the only good copy is here"
    shutil.rmtree(other / "episodes" / "e0")  # moved out of the way there
    assert sync(store, other).exit_code == 0
    assert synced(store)["e0"] == str(other)


def test_all_that_is_damaged_is_said_at_once_here_and_there(store: EpisodeStore, other: Path) -> None:
    damage(other, "e0")
    (other / "episodes" / "e1" / "episode.json").write_bytes(b"{}")
    record_episode(store, 5, episode_id="e3")
    damage(store.root, "e3")
    done = sync(store, other, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert sorted(told["damaged"]) == ["e0", "e1", "e3"]
    assert told["there"] == ["e2"]
    assert str(store.root / "episodes" / "e3") in told["damaged"]["e3"]
    assert synced(store) == {"e0": None, "e1": None, "e2": str(other), "e3": None}


def test_over_pipes_too_one_damaged_episode_does_not_end_it(
    store: EpisodeStore, other: Path, tmp_path: Path
) -> None:
    for name in IDS:
        mark_synced(store.root, name, store.read(name).digest, f"desk:{other}")
    shell = tmp_path / "ssh"
    there = f'eval "set -- $3" && shift && exec {sys.executable} -m tools.cli "$@"'
    shell.write_text(f"#!/bin/sh\ncd {ROOT} && {there}\n")
    shell.chmod(0o755)
    damage(other, "e1")
    shutil.rmtree(other / "episodes" / "e0")
    done = sync(store, f"desk:{other}/", "--ssh", str(shell), "--where", "id > 'e0'")
    assert done.exit_code == 1
    assert f"episode e1 in {other} is damaged" in done.output
    assert synced(store) == {"e0": None, "e1": None, "e2": f"desk:{other}"}


class CutLink(Receiver):
    """A line that is cut as soon as something is sent."""

    def piece(self, episode_id: str, name: str, offset: int, data: bytes) -> None:
        raise RecordingError("cut")


def test_what_is_gone_there_does_not_count_even_when_copying_it_again_fails(
    store: EpisodeStore, other: Path
) -> None:
    shutil.rmtree(other / "episodes" / "e1")
    shutil.rmtree(other / "episodes" / "e2")
    with EpisodeStore.open(other) as target, pytest.raises(RecordingError, match="cut"):
        send(store.root, ["e1"], CutLink(target), Notes(store.root, str(other)))
    assert synced(store) == {"e0": str(other), "e1": None, "e2": None}


@pytest.mark.parametrize("replaced", ["emptied", "no store"])
def test_a_folder_that_was_emptied_or_replaced_holds_no_copies(
    store: EpisodeStore, other: Path, replaced: str
) -> None:
    shutil.rmtree(other)
    if replaced == "no store":
        other.mkdir()
        (other / "holiday.jpg").touch()
    done = sync(store, other, "--where", "id = 'e1'")
    assert done.exit_code == (0 if replaced == "emptied" else 1)
    there = {"e1": str(other)} if replaced == "emptied" else {}
    assert synced(store) == dict.fromkeys(IDS, None) | there
    assert prune(store, 0, dry_run=True).deleted == tuple(there)


def test_another_episode_of_that_name_is_no_copy(store: EpisodeStore, other: Path) -> None:
    shutil.rmtree(other)
    with EpisodeStore.open(other) as target:
        record_episode(target, 9, episode_id="e0")
    done = sync(store, other)
    assert done.exit_code == 1
    assert "another episode e0" in done.output
    assert synced(store) == {"e0": None, "e1": str(other), "e2": str(other)}


def test_what_counts_on_another_place_goes_on_counting_on_it(store: EpisodeStore, other: Path) -> None:
    mark_synced(store.root, "e0", store.read("e0").digest, "/elsewhere")
    damage(other, "e0")
    assert sync(store, other).exit_code == 1
    assert synced(store)["e0"] == "/elsewhere"
    store.catalogue.unmark_synced("e0", str(other))
    assert synced(store)["e0"] == "/elsewhere"


def test_one_folder_has_one_name_however_it_is_spelt(
    store: EpisodeStore, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alias = tmp_path / "alias"
    alias.symlink_to(other)
    for spelt in ("./other", "other/", str(alias)):
        assert place(spelt) == str(other)
    mark_synced(store.root, "e1", store.read("e1").digest, "./other")  # noted as it was typed
    damage(other, "e0")
    damage(other, "e1")
    assert sync(store, "./alias").exit_code == 1
    assert synced(store) == {"e0": None, "e1": None, "e2": str(other)}


def test_a_store_that_cannot_be_told_of_a_lost_copy_says_so(
    store: EpisodeStore, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(other, "e0")
    store.catalogue._db.execute(
        "CREATE TRIGGER no BEFORE UPDATE ON episodes BEGIN SELECT raise(ABORT, 'disk broke'); END"
    )
    done = sync(store, other)
    assert isinstance(done.exception, RecordingError)
    assert "no good copy of episode e0" in str(done.exception)
    assert "do not prune it" in str(done.exception)


def test_an_episode_that_the_budget_took_meanwhile_is_no_damage(store: EpisodeStore, other: Path) -> None:
    store.delete("e0")
    with EpisodeStore.open(other) as target:
        copied = send(store.root, IDS, Receiver(target), Notes(store.root, str(other)))
    assert (copied.gone, copied.there, copied.damaged) == (["e0"], ["e1", "e2"], {})
    shutil.rmtree(store.root / "episodes" / "e1")  # this one nobody deleted
    with EpisodeStore.open(other) as target:
        copied = send(store.root, IDS, Receiver(target), Notes(store.root, str(other)))
    assert isinstance(copied.damaged["e1"], DamagedError)


def test_a_copy_found_damaged_while_the_budget_is_kept_is_not_deleted_for(
    store: EpisodeStore, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = store.delete

    def meanwhile(name: str) -> None:
        store.catalogue.unmark_synced("e1", str(other))
        delete(name)

    monkeypatch.setattr(store, "delete", meanwhile)
    assert prune(store, 0).deleted == ("e0", "e2")
    assert store.ids() == ["e1"]
