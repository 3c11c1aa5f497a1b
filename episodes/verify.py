"""Proof that published episodes are what was written: by size, by checksum, by marker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from episodes.catalogue import Catalogue
from episodes.errors import DamagedError
from episodes.marker import MARKER_NAME, read_marker
from episodes.publish import PARTIAL

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing wrong: the episode, the file (relative to the store), what is wrong with it."""

    episode_id: str
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what is wrong; ``ok`` when nothing is. ``deep`` = every byte was read."""

    episodes: int
    files: int
    bytes: int
    deep: bool
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.damages


def verify_store(root: Path, catalogue: Catalogue, deep: bool) -> VerifyReport:
    """Check every published episode. Shallow: markers, presence, sizes. Deep: sha256 of every file."""
    damages: list[Damage] = []
    files = total = 0
    folders = root / "episodes"
    rows = catalogue.ids()
    ids = sorted({p.name for p in folders.iterdir() if not p.name.endswith(PARTIAL)} | set(rows))
    for episode_id in ids:
        folder = folders / episode_id
        if not folder.is_dir():
            damages.append(Damage(episode_id, f"episodes/{episode_id}", "is missing"))
            continue
        problems, count, size = verify_episode(folder, deep)
        if not problems:
            if episode_id not in rows:
                problems = [("", "has no catalogue row (open the store for writing to add it)")]
            elif rows[episode_id][0] != read_marker(folder).content_digest():
                problems = [(MARKER_NAME, "is not the one in the catalogue")]
        damages += [
            Damage(episode_id, f"episodes/{episode_id}/{name}".rstrip("/"), what) for name, what in problems
        ]
        files += count
        total += size
    return VerifyReport(len(ids), files, total, deep, tuple(damages))


def verify_episode(folder: Path, deep: bool) -> tuple[list[tuple[str, str]], int, int]:
    """Problems of one episode as (file, what), and how many files and bytes were checked."""
    try:
        marker = read_marker(folder)
    except DamagedError as error:
        return [(MARKER_NAME, error.what.partition(" is ")[2] or error.what)], 0, 0
    problems = []
    total = 0
    if marker.meta.id != folder.name:
        problems.append((MARKER_NAME, f"belongs to episode {marker.meta.id}"))
    for name, (size, digest) in marker.files.items():
        total += size
        what = _check(folder / name, size, digest if deep else None)
        if what:
            problems.append((name, what))
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    problems += [
        (name, "does not belong here") for name in sorted(found - marker.files.keys() - {MARKER_NAME})
    ]
    return problems, len(marker.files) + 1, total


def _check(path: Path, size: int, digest: str | None) -> str:
    """What is wrong with a file, or ''."""
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes, {size} were written"
        if digest is None:
            return ""
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                sha.update(data)
        return "" if sha.hexdigest() == digest else "fails its checksum"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
