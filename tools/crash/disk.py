"""A disk with a cache: which of the operations given to it survive a power cut.

What was synced is there. Of the rest, each write may be there whole, not at all, or in some of its
sectors; a file may have its new length and zeros; names (created, renamed, removed) are there up to some
point of each folder's own order, whatever became of the bytes. That is harsher than a journaling file
system, which keeps the order of names over all folders.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from tools.crash.oplog import CATALOGUE, Operation

SECTOR = 512


@dataclass(slots=True)
class _File:
    """``synced`` bytes are safe; ``pending`` are (offset, data) writes, or (size, None) for a truncation."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.synced = self.content(None)
        self.pending.clear()

    def content(self, rng: random.Random | None) -> bytes:
        """With everything pending, or with what ``rng`` lets survive."""
        data = bytearray(self.synced)
        for offset, piece in self.pending:
            if piece is None:
                if rng is None or rng.random() < 0.5:
                    del data[offset:]
                continue
            fate = 1.0 if rng is None else rng.random()
            if fate < 0.3:
                continue
            if offset + len(piece) > len(data):
                data.extend(bytes(offset + len(piece) - len(data)))
            if rng is None or fate > 0.6:
                data[offset : offset + len(piece)] = piece
                continue
            if fate < 0.4:  # the length arrived, the bytes did not
                continue
            for at in range(0, len(piece), SECTOR):
                if rng.random() < 0.7:
                    data[offset + at : offset + at + SECTOR] = piece[at : at + SECTOR]
        return bytes(data)


@dataclass(slots=True)
class _Folder:
    """``synced`` names, and those after all of ``changes``: (name, what it stands for or None)."""

    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    changes: list[tuple[tuple[str, _File | _Folder | None], ...]] = field(default_factory=list)

    def change(self, *entries: tuple[str, _File | _Folder | None]) -> None:
        """Changes that happen together, such as both halves of a rename."""
        self.changes.append(entries)
        self._apply(self.now, entries)

    def sync(self) -> None:
        self.synced = dict(self.now)
        self.changes.clear()

    def names(self, rng: random.Random) -> dict[str, _File | _Folder]:
        """What is in the folder after the cut."""
        found = dict(self.synced)
        for entries in self.changes[: rng.randint(0, len(self.changes))]:
            self._apply(found, entries)
        return found

    @staticmethod
    def _apply(
        names: dict[str, _File | _Folder], entries: tuple[tuple[str, _File | _Folder | None], ...]
    ) -> None:
        for name, node in entries:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


class Disk:
    """Takes operations in order; ``cut`` writes what a power cut now could leave."""

    def __init__(self) -> None:
        self._top = _Folder()
        self._catalogue: tuple[bytes | None, ...] = ()

    def apply(self, operation: Operation) -> None:
        """One whole operation."""
        path, folder = operation.path, self._folder(operation.path.parent)
        self._catalogue = operation.catalogue
        match operation.kind:
            case "create":
                folder.change((path.name, _File()))
            case "mkdir":
                if path.name not in folder.now:
                    folder.change((path.name, _Folder()))
            case "write" | "truncate":
                piece = operation.data if operation.kind == "write" else None
                offset = operation.offset if operation.kind == "write" else operation.size
                self._file(path).pending.append((offset, piece))
            case "sync":
                (self._node(path)).sync()
            case "syncfs":
                self._sync_all(self._top)
            case "unlink" | "remove_tree":
                if path.name in folder.now:
                    folder.change((path.name, None))
            case "rename":
                assert operation.target is not None
                self._rename(path, operation.target)

    def _rename(self, source: Path, target: Path) -> None:
        old, new = self._folder(source.parent), self._folder(target.parent)
        node = old.now[source.name]
        if old is new:
            old.change((source.name, None), (target.name, node))
        else:
            new.change((target.name, node))
            old.change((source.name, None))

    def cut(self, target: Path, rng: random.Random, during: Operation | None) -> None:
        """Write one possible aftermath below ``target``; ``during`` was under way when the power went."""
        written = None
        if during is not None and during.kind == "write":
            written = self._file(during.path)
            written.pending.append((during.offset, during.data[: rng.randint(0, len(during.data))]))
        target.mkdir(parents=True)
        self._write(self._top, target, rng)
        if written is not None:
            written.pending.pop()
        for root in target.iterdir():
            if (root / "store.json").exists():
                self._write_catalogue(root, rng)

    def _write_catalogue(self, root: Path, rng: random.Random) -> None:
        """As last seen; now and then with a torn log behind it, or with nothing left of it."""
        if rng.random() < 0.05:
            return
        for name, data in zip(CATALOGUE, self._catalogue, strict=False):
            if data is not None:
                torn = bytes(rng.randint(0, 4096)) if name.endswith("wal") and rng.random() < 0.3 else b""
                (root / name).write_bytes(data + torn)

    def _write(self, folder: _Folder, target: Path, rng: random.Random) -> None:
        for name, node in folder.names(rng).items():
            if isinstance(node, _Folder):
                (target / name).mkdir()
                self._write(node, target / name, rng)
            else:
                (target / name).write_bytes(node.content(rng))

    def _sync_all(self, folder: _Folder) -> None:
        folder.sync()
        for node in folder.now.values():
            if isinstance(node, _Folder):
                self._sync_all(node)
            else:
                node.sync()

    def _folder(self, path: Path) -> _Folder:
        node = self._node(path)
        assert isinstance(node, _Folder)
        return node

    def _file(self, path: Path) -> _File:
        node = self._node(path)
        assert isinstance(node, _File)
        return node

    def _node(self, path: Path) -> _File | _Folder:
        node: _File | _Folder = self._top
        for part in path.parts:
            assert isinstance(node, _Folder)
            node = node.now[part]
        return node
