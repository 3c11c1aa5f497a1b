"""Copies of episodes elsewhere: checked, resumed, marked."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from episode_helpers import LOSSLESS, SPEC, record_episode, record_ticks

from episodes.copies import Notes, mark_synced
from episodes.errors import RecordingError, StoreError
from episodes.retention import prune
from episodes.store import EpisodeStore
from episodes.sync import Copied, Link, Receiver, send, syncing
from tools.commands.episodes import episodes
from tools.errors import UsageError

ROOT = Path(__file__).parents[2]


def copy(source: EpisodeStore, target: EpisodeStore) -> Copied:
    return send(source.root, source.ids(), Receiver(target), Notes(source.root, str(target.root)))


def only_send(source: EpisodeStore, name: str, link: Link) -> Copied:
    return send(source.root, [name], link, Notes(source.root, "nowhere", writable=False))


def synced(store: EpisodeStore) -> dict[str, str | None]:
    return {row["id"]: row["synced"] for row in store.query("SELECT id, synced FROM episodes")}


def test_a_copy_is_the_same_and_noted(store: EpisodeStore, tmp_path: Path) -> None:
    ids = [record_episode(store, 20) for _ in range(2)]
    with EpisodeStore.open(tmp_path / "other") as other:
        copied = copy(store, other)
        assert copied.sent == ids
        assert other.verify().ok
        assert [other.read(i).digest for i in ids] == [store.read(i).digest for i in ids]
        assert list((other.root / "incoming").iterdir()) == []
        again = copy(store, other)
        assert (again.sent, again.there, again.bytes) == ([], ids, 0)
    assert synced(store) == dict.fromkeys(ids, str(tmp_path / "other"))


class CutLink(Receiver):
    """A line that is cut after some pieces, in the middle of one."""

    def __init__(self, store: EpisodeStore, pieces: int) -> None:
        super().__init__(store)
        self.left = pieces

    def piece(self, episode_id: str, name: str, offset: int, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            super().piece(episode_id, name, offset, data[: len(data) // 2])
            raise RecordingError("cut")
        super().piece(episode_id, name, offset, data)


@pytest.mark.parametrize("pieces", [0, 3, 11])
def test_an_interrupted_copy_goes_on_where_it_was(store: EpisodeStore, tmp_path: Path, pieces: int) -> None:
    name = record_episode(store, 20)
    with EpisodeStore.open(tmp_path / "other") as other:
        with pytest.raises(RecordingError, match="cut"):
            send(store.root, [name], CutLink(other, pieces), Notes(store.root, str(other.root)))
        assert other.ids() == []
        assert synced(store)[name] is None, "not there yet"
    with EpisodeStore.open(tmp_path / "other") as other:
        copied = only_send(store, name, Receiver(other))
        assert copied.resumed_bytes > 0
        files = store.read(name).marker.files
        assert copied.bytes + copied.resumed_bytes == sum(size for size, _ in files.values())
        assert other.verify().ok
        assert other.ids() == [name]


def test_what_was_torn_on_the_way_is_sent_again_and_what_is_damaged_here_is_refused(
    store: EpisodeStore, tmp_path: Path
) -> None:
    name = record_episode(store, 20)
    blob = "frames.front/0"
    with EpisodeStore.open(tmp_path / "other") as other:
        torn = other.root / "incoming" / name / blob
        torn.parent.mkdir(parents=True)
        torn.write_bytes(bytes(1000))  # its length survived a power cut, its bytes did not
        assert only_send(store, name, Receiver(other)).sent == [name]
        assert other.verify().ok
    path = store.root / "episodes" / name / blob
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with EpisodeStore.open(tmp_path / "third") as third:
        copied = only_send(store, name, Receiver(third))
        assert "checksum" in str(copied.damaged[name])
        assert (copied.sent, third.ids()) == ([], [])


def test_an_offer_cannot_reach_outside_its_folder(store: EpisodeStore, tmp_path: Path) -> None:
    name = record_episode(store, 3)
    marker = (store.root / "episodes" / name / "episode.json").read_bytes()
    receiver = Receiver(store)
    with pytest.raises(RecordingError, match="no episode's id"):
        receiver.offer("../../x", marker)
    with EpisodeStore.open(tmp_path / "other") as other:
        receiver = Receiver(other)
        receiver.offer(name, marker)
        with pytest.raises(RecordingError, match="does not belong"):
            receiver.piece(name, "../../../x", 0, b"x")


def test_over_a_shell_that_stands_in_for_ssh_while_the_source_records(
    store: EpisodeStore, tmp_path: Path
) -> None:
    name = record_episode(store, 20)
    writer = store.begin(SPEC, config=LOSSLESS)
    record_ticks(writer, 3)
    shell = tmp_path / "ssh"
    there = f'eval "set -- $3" && shift && exec {sys.executable} -m tools.cli "$@"'
    shell.write_text(f'#!/bin/sh\n[ "$1 $2" = "-- me@desk" ] && cd {ROOT} && {there}\n')
    shell.chmod(0o755)
    target = tmp_path / "remote; place"
    for words in ("1 episodes copied", "0 episodes copied"):
        done = CliRunner().invoke(
            episodes, ["sync", f"me@desk:{target}", "--store", str(store.root), "--ssh", str(shell)]
        )
        assert done.exit_code == 0, done.output
        assert words in done.output
    assert synced(store)[name] == f"me@desk:{target}"
    writer.end("success").wait(30)
    with EpisodeStore.open(target) as other:
        assert other.ids() == [name]
        assert other.verify().ok


def test_why_the_other_side_stopped_reaches_whoever_copies(store: EpisodeStore, tmp_path: Path) -> None:
    """Through real pipes, as ssh makes them: a disk that fills up there, a store in use, no ssh at all."""
    record_episode(store, 500)
    target = tmp_path / "there"

    def sync(script: str) -> str:
        shell = tmp_path / "ssh"
        shell.write_text(f"#!/bin/sh\ncd {ROOT}\n{script}\n")
        shell.chmod(0o755)
        command = ["sync", f"me@desk:{target}", "--store", str(store.root), "--ssh", str(shell)]
        done = CliRunner().invoke(episodes, command)
        assert isinstance(done.exception, StoreError)
        assert "\n" not in str(done.exception)
        return str(done.exception)

    receive = f"{sys.executable} -m tools.cli episodes receive {target}"
    # At most 128 kB a file: as with a full disk, writing fails halfway, and sending goes on meanwhile.
    assert "no space left" in sync(f"trap '' XFSZ; ulimit -f 256; exec {receive}")
    with EpisodeStore.open(target):
        assert "is being written by process" in sync(f"exec {receive}")
    assert "No route to host" in sync("echo 'ssh: connect to host desk port 22: No route to host' >&2")


def test_of_two_stores_that_copy_to_each_other_one_keeps_the_episode(
    store: EpisodeStore, tmp_path: Path
) -> None:
    name = record_episode(store, 10)
    with EpisodeStore.open(tmp_path / "b") as b, EpisodeStore.open(tmp_path / "c") as c:
        assert copy(store, b).leaning == []
        assert copy(b, store).leaning == [name], "that copy counts on this very one"
        assert (synced(store)[name], synced(b)[name]) == (str(b.root), None)
        assert copy(b, c).sent == [name]
        assert synced(b)[name] == str(c.root), "a third one may be counted on"
        assert copy(c, store).leaning == [name], "but a circle is none"
        assert copy(c, b).leaning == [name]
        for each in (store, b, c):
            prune(each, 0)
        assert [each.ids() for each in (store, b, c)] == [[], [], [name]]


def test_two_copies_at_a_time_are_refused(store: EpisodeStore, tmp_path: Path) -> None:
    record_episode(store, 5)
    with syncing(store.root):
        done = CliRunner().invoke(episodes, ["sync", str(tmp_path / "b"), "--store", str(store.root)])
    assert "is being copied from or to by process" in str(done.exception)


def test_a_store_that_cannot_be_told_says_so(store: EpisodeStore, tmp_path: Path) -> None:
    name = record_episode(store, 5)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "catalogue.sqlite").mkdir()
    with pytest.raises(RecordingError, match=f"{name} is at there, but .* cannot be told so") as caught:
        mark_synced(tmp_path / "s", name, "digest", "there")
    assert "counts as not synced" in str(caught.value)
    assert "mode=" not in str(caught.value)


def test_the_store_itself_is_no_copy(store: EpisodeStore, tmp_path: Path) -> None:
    name = record_episode(store, 10)
    alias = tmp_path / "alias"
    alias.symlink_to(store.root)
    for destination in (store.root, alias):
        done = CliRunner().invoke(episodes, ["sync", str(destination), "--store", str(store.root)])
        assert isinstance(done.exception, UsageError)
        assert "is the store itself" in str(done.exception)
    assert synced(store)[name] is None


def test_a_source_that_can_only_be_read_is_copied_and_not_marked(store: EpisodeStore, tmp_path: Path) -> None:
    name = record_episode(store, 10)
    (store.root / "sync.lock").mkdir()  # root may write everywhere: this it cannot open either
    done = CliRunner().invoke(episodes, ["sync", str(tmp_path / "b"), "--store", str(store.root)])
    assert done.exit_code == 0, done.exception
    assert done.output.count("is not noted in it") == 1
    assert synced(store)[name] is None
    with EpisodeStore.open(tmp_path / "b", mode="r") as copied:
        assert copied.ids() == [name]
    with pytest.raises(RecordingError, match=r"cannot open .*sync\.lock"), syncing(store.root):
        pass


def test_a_store_on_a_read_only_disk_is_read_without_a_file_beside_it(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = record_episode(store, 5)
    store.close()
    before = sorted(path.name for path in store.root.iterdir())
    flags = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: flags)
    with EpisodeStore.open(store.root, mode="r") as opened:
        assert opened.select("true") == [name]
        assert sorted(path.name for path in store.root.iterdir()) == before


def test_a_host_without_its_colon_is_no_folder(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = record_episode(store, 10)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(episodes, ["sync", "desk", "--store", str(store.root)])
    assert isinstance(done.exception, UsageError)
    assert "did you mean desk:FOLDER" in str(done.exception)
    assert not (tmp_path / "desk").exists()
    assert synced(store)[name] is None
    meant = CliRunner().invoke(episodes, ["sync", "./desk", "--store", str(store.root)])
    assert "is on the same disk as" in meant.output
    assert synced(store)[name] == str(tmp_path / "desk")


def test_a_note_about_other_content_does_not_count(store: EpisodeStore) -> None:
    name = record_episode(store, 5)
    mark_synced(store.root, name, "of another content", "elsewhere")
    assert synced(store) == {name: None}


def test_a_catalogue_of_the_first_version_gains_the_column(tmp_path: Path) -> None:
    root = tmp_path / "s"
    with EpisodeStore.open(root) as store:
        name = record_episode(store, 5)
    with sqlite3.connect(root / "catalogue.sqlite") as db:
        db.execute("ALTER TABLE episodes DROP COLUMN synced")
        db.execute("PRAGMA user_version=1")
    rows: list[dict[str, Any]]
    with EpisodeStore.open(root) as store:
        assert not store.recovery
        rows = store.query("SELECT id, synced FROM episodes")
    assert rows == [{"id": name, "synced": None}]
