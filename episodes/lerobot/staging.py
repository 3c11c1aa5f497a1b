"""A set in the making, beside the one it will be part of: can be killed at any time and taken up again.

::

    DST/.ratchet-staging/plan.json      what is being made, of what; another plan starts anew
    DST/.ratchet-staging/done/*.jsonl   one per finished file, with what is to be known about it
    DST/.ratchet-staging/set/…          the files, at the places they will have in DST
    DST/.ratchet-staging/ready          everything is there and checked; from here on it is only moved

Files are moved rows and videos first, ``meta/info.json`` last; a move that was cut short is finished
by the next run, before anything else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from episodes.files import FileLayer

NAME = ".ratchet-staging"
_LAST = ("meta/episodes", "meta/tasks.parquet", "meta/stats.json", "meta/ratchet_sources.jsonl",
         "meta/info.json")  # fmt: skip
_FILES = FileLayer()


class Staging:
    """The folder of one conversion into ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / NAME
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
        shutil.rmtree(self.folder, ignore_errors=True)
        self._done.mkdir(parents=True)
        self.set.mkdir()
        self._write(path, text)
        return False

    def is_finished(self, name: str) -> bool:
        """Whether a file is whole."""
        return (self._done / f"{name}.jsonl").exists()

    def results(self, name: str) -> Iterator[Any]:
        """What was noted about a finished file, a line at a time."""
        with (self._done / f"{name}.jsonl").open() as file:
            yield from map(json.loads, file)

    def finish(self, name: str, file: Path, results: Iterable[Any]) -> None:
        """Note what comes while ``file`` (in the set) is written, and that it is whole when no more comes.

        The file is on the disk before the note is.
        """
        path = self._done / f"{name}.jsonl"
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as notes:
            for result in results:
                notes.write(json.dumps(result) + "\n")
        _FILES.sync_path(file)
        _FILES.sync_path(temporary)
        _FILES.rename(temporary, path)
        _FILES.sync_path(self._done)

    def publish(self) -> None:
        """Move everything to where it belongs."""
        for folder in (self.set, *(p for p in self.set.rglob("*") if p.is_dir())):
            _FILES.sync_path(folder)  # each file is on the disk already
        self._write(self.folder / "ready", "")
        self._move()

    def _move(self) -> None:
        files = [p for p in sorted(self.set.rglob("*")) if p.is_file()]
        for path in sorted(files, key=lambda p: self._order(p.relative_to(self.set).as_posix())):
            target = self.root / path.relative_to(self.set)
            target.parent.mkdir(parents=True, exist_ok=True)
            _FILES.rename(path, target)
            _FILES.sync_path(target.parent)
        shutil.rmtree(self.folder)

    @staticmethod
    def _order(name: str) -> int:
        return next((1 + i for i, start in enumerate(_LAST) if name.startswith(start)), 0)

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        _FILES.sync_path(temporary)
        _FILES.rename(temporary, path)
        _FILES.sync_path(path.parent)
