"""`ratchet episodes sync` and `receive`: copies of episodes on another disk or another machine."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from episodes.copies import Notes, machine_and_folder
from episodes.errors import StoreError, StoreFormatError
from episodes.store import EpisodeStore
from episodes.sync import Copied, Link, Receiver, send, syncing
from episodes.wire import RemoteLink, refuse, serve_receiver
from tools.console import disk_errors, say, show_json
from tools.errors import UsageError
from tools.options import PATH, json_flag, store_option
from tools.progress import bar

_END_S = 30.0
_HEARD = 20
_LINE_BYTES = 4096


@click.command(
    epilog="""
\b
Examples:
  ratchet episodes sync /mnt/backup/episodes --store episodes
  ratchet episodes sync me@desk:episodes --store /var/lib/ratchet/episodes --where "flagged = 1"
"""
)
@click.argument("destination", metavar="DEST")
@store_option
@click.option("--where", default="true", help="SQL condition: which episodes.")
@click.option("--ssh", default="ssh", show_default=True, help="The program that reaches user@host.")
@click.option(
    "--remote-ratchet", default="ratchet", show_default=True, help="What `ratchet` is called there."
)
@json_flag
def sync(destination: str, store: Path, where: str, ssh: str, remote_ratchet: str, as_json: bool) -> None:
    """Copy episodes into the store at DEST: a folder, or user@host:folder over ssh.

    Every file is compared with its checksum on arrival before the episode counts as there; it is then
    marked as synced here, unless the copy there counts on another one itself. A copy that is damaged or no
    longer there is not counted on any more; the others are copied, and the exit code is 1. Run again after
    an interruption it goes on where it was. Works while the robot records, and from a store that can only be
    read: then nothing is marked.
    """
    if _same(Path(destination), store):
        raise UsageError(f"{destination} is the store itself, and no copy of it; name another place")
    _refuse_a_host(destination)
    with EpisodeStore.open(store, create=False, mode="r") as opened:
        chosen = opened.select(where)
        sizes = {
            str(row["id"]): int(row["bytes"] or 0) for row in opened.query("SELECT id, bytes FROM episodes")
        }
        total = sum(sizes[name] for name in chosen)
    with syncing(store, source=True) as writable, contextlib.ExitStack() as stack:
        notes = Notes(store, destination, writable)
        try:
            link = stack.enter_context(_link(destination, ssh, remote_ratchet))
        except StoreFormatError:  # whatever copies there were, nobody can read them
            for name in notes.counted():
                notes.lost(name)
            raise
        stack.enter_context(disk_errors(store))
        update = stack.enter_context(bar("copying", total, "B"))
        copied = send(store, chosen, link, notes, update)
    if not writable:
        say(f"{store} cannot be written: which of these episodes are synced is not noted in it")
    elif _one_disk(destination, store):
        say(f"{destination} is on the same disk as {store}: these copies count, but do not survive the disk")
    _tell(copied, destination, as_json)
    if copied.damaged:
        sys.exit(1)


def _tell(copied: Copied, destination: str, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "sent": copied.sent,
                "there": copied.there,
                "leaning": copied.leaning,
                "damaged": {name: str(error) for name, error in copied.damaged.items()},
                "gone": copied.gone,
                "bytes": copied.bytes,
                "resumed_bytes": copied.resumed_bytes,
            }
        )
    else:
        checked = len(copied.sent) + len(copied.there)
        click.echo(
            f"{len(copied.sent)} episodes copied ({copied.bytes / 1e6:.1f} MB), "
            f"{len(copied.there)} were there; {checked} checked at {destination}"
        )
        if copied.leaning:
            say(
                f"{len(copied.leaning)} of them count on another copy themselves (this store's, perhaps), "
                "and are not counted as synced here"
            )
        if copied.gone:
            say(f"{len(copied.gone)} were deleted here meanwhile")
    for error in copied.damaged.values():
        say(str(error))
    if copied.damaged:
        say(f"{len(copied.damaged)} damaged, here or at {destination}: a damaged copy is not counted on")


def _same(destination: Path, store: Path) -> bool:
    """Whether both are one folder, by whatever names."""
    try:
        return destination.samefile(store)
    except OSError:
        return False


def _refuse_a_host(destination: str) -> None:
    """Raises UsageError for what is no folder and looks like a machine whose colon was forgotten."""
    if ":" not in destination and "/" not in destination and not Path(destination).exists():
        raise UsageError(
            f"there is no folder {destination}; did you mean {destination}:FOLDER on another machine? "
            f"Say ./{destination} for a new folder here"
        )


def _one_disk(destination: str, store: Path) -> bool:
    try:
        return Path(destination).stat().st_dev == store.stat().st_dev
    except OSError:
        return False  # another machine's


@contextlib.contextmanager
def _link(destination: str, ssh: str, remote_ratchet: str) -> Iterator[Link]:
    host, path = machine_and_folder(destination)
    if not host:
        with EpisodeStore.open(destination) as other, syncing(other.root):
            yield Receiver(other)
        return
    # What ssh is given is a command line for a shell there.
    remote = shlex.join([remote_ratchet, "episodes", "receive", path])
    command = [ssh, "--", host, remote]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        heard = _Heard(process.stderr)
        try:
            yield RemoteLink(process.stdout, process.stdin, heard.last_words)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                say(f"{host} does not hang up; ending it")
                process.kill()


class _Heard:
    """What ssh, and `ratchet` at the other end, say on stderr: kept for the one line when something fails."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: deque[bytes] = deque(maxlen=_HEARD)
        self._thread = threading.Thread(target=self._listen, args=(stream,), daemon=True)
        self._thread.start()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(_LINE_BYTES), b""):
            if line.strip():
                self._lines.append(line)

    def last_words(self) -> str:
        """The last line, once the other side has hung up."""
        self._thread.join(_END_S)
        last = self._lines[-1].decode(errors="replace") if self._lines else ""
        return "".join(c for c in last if c.isprintable()).strip()


@click.command(epilog="\b\nExample:\n  ssh desk ratchet episodes receive episodes      # what sync runs")
@click.argument("path", type=PATH)
def receive(path: Path) -> None:
    """The other end of `ratchet episodes sync`: takes episodes from stdin into the store at PATH."""
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(EpisodeStore.open(path))
            stack.enter_context(syncing(path))
        except StoreError as error:
            refuse(sys.stdout.buffer, error)
            raise
        serve_receiver(Receiver(store), sys.stdin.buffer, sys.stdout.buffer)
