"""A set in the making, beside the one it will be part of: can be killed at any time and taken up again.

::

    DST/.ratchet-staging/plan.json      what is being made, of what; another plan starts anew
    DST/.ratchet-staging/done/*.jsonl   one per finished file: what is to be known about it, then "end"
    DST/.ratchet-staging/set/…          the files, at the places they will have in DST
    DST/.ratchet-staging/ready          everything is there and checked; from here on it is only moved

Files are moved rows and videos first, then ``meta``, ``meta/info.json`` last; a move that was cut short
is finished by the next run, before anything else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from episodes.files import FileLayer
from episodes.lerobot.durable import write_whole
from episodes.lerobot.v30 import STAGING

_LAST = ("meta/", "meta/info.json")
_END = b'"end"\n'
_FILES = FileLayer()


class Staging:
    """The folder of one conversion into ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / STAGING
        self.set = self.folder / "set"
        self._done = self.folder / "done"

    def finish_interrupted(self) -> bool:
        """Complete a move that was cut short; whether there was one."""
        if not (self.folder / "ready").exists():
            return False
        self._move()
        return True

    def begin(self, plan: dict[str, Any]) -> bool:
        """Take up the work for ``plan``, or start anew; whether something was there to take up."""
        path = self.folder / "plan.json"
        text = json.dumps(plan, sort_keys=True)
        if path.exists() and path.read_text() == text:
            return True
        self.discard()
        self._done.mkdir(parents=True)
        self.set.mkdir()
        path.write_text(text)  # one that is lost or torn in a power cut is another plan
        return False

    def discard(self) -> None:
        """Take away what is there, of whatever plan."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_finished(self, name: str) -> bool:
        """Whether a file is whole: the note about it is, which is not synced itself."""
        try:
            with (self._done / f"{name}.jsonl").open("rb") as file:
                file.seek(-len(_END), 2)
                return file.read() == _END
        except OSError:
            return False

    def results(self, name: str) -> Iterator[Any]:
        """What was noted about a finished file, a line at a time."""
        with (self._done / f"{name}.jsonl").open("rb") as file:
            for line in file:
                if line != _END:
                    yield json.loads(line)

    def finish(self, name: str, file: Path, results: Iterable[Any]) -> None:
        """Note what comes while ``file`` (in the set) is written, and that it is whole when no more comes.

        The file is on the disk before the end of the note is written.
        """
        path = self._done / f"{name}.jsonl"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as notes:
            for result in results:
                notes.write(json.dumps(result).encode() + b"\n")
            _FILES.sync_path(file)
            notes.write(_END)
        _FILES.rename(temporary, path)

    def publish(self) -> None:
        """Move everything to where it belongs."""
        for folder in (self.set, *(p for p in self.set.rglob("*") if p.is_dir())):
            _FILES.sync_path(folder)  # each file is on the disk already
        write_whole(self.folder / "ready", "")
        self._move()

    def _move(self) -> None:
        files = [p.relative_to(self.set) for p in sorted(self.set.rglob("*")) if p.is_file()]
        for _, group in groupby(sorted(files, key=self._order), key=self._order):
            folders: dict[Path, None] = {}
            for path in group:
                target = self.root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _FILES.rename(self.set / path, target)
                folders |= dict.fromkeys((target.parent, *target.parent.relative_to(self.root).parents))
            for folder in folders:
                _FILES.sync_path(self.root / folder)
        self.discard()

    @staticmethod
    def _order(path: Path) -> int:
        name = path.as_posix()
        return sum(name.startswith(start) for start in _LAST)
