"""What a store notes about copies of its episodes at one place: which of them count, and which no longer do.

A note lets retention delete the episode, so it goes as soon as anything speaks against the copy: it is not
there, it is damaged, or another episode has its name. A note too few costs another look, one too many the
episode.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from episodes.catalogue import Catalogue
from episodes.errors import RecordingError, StoreError

_SYNCED = "SELECT id, synced FROM episodes WHERE synced IS NOT NULL"


def machine_and_folder(destination: str) -> tuple[str, str]:
    """``user@host:folder`` in its parts; a folder on this machine has no machine: ``("", folder)``."""
    machine, colon, folder = destination.partition(":")
    if not colon or "/" in machine:
        return "", destination
    return machine, folder or "."


def place(destination: str) -> str:
    """How a destination is noted: one folder has one name, from wherever and however it was named."""
    machine, folder = machine_and_folder(destination)
    return f"{machine}:{posixpath.normpath(folder)}" if machine else os.path.realpath(folder)


class Notes:
    """The notes of the store at ``root`` about copies at ``destination``.

    SQLite lets them be made beside a live recorder. With ``writable`` False nothing is noted.
    """

    def __init__(self, root: Path, destination: str, writable: bool = True) -> None:
        """Raises StoreError when the catalogue cannot be read."""
        self.where = place(destination)
        self._path = root / "catalogue.sqlite"
        self._root, self._writable = root, writable
        catalogue = Catalogue(self._path, readonly=True)
        try:
            noted = [(str(name), str(where)) for name, where in catalogue.select(_SYNCED)]
        finally:
            catalogue.close()
        self._counted = {name: where for name, where in noted if place(where) == self.where}

    def counted(self) -> list[str]:
        """Ids of the episodes that count on a copy there."""
        return list(self._counted)

    def good(self, episode_id: str, digest: str) -> None:
        """A checked copy of the episode with this content is there, and counts. Raises StoreError."""
        if self._writable:
            mark_synced(self._root, episode_id, digest, self.where)

    def lost(self, episode_id: str) -> None:
        """There is no copy that could be counted on: the episode no longer does. Raises StoreError."""
        where = self._counted.get(episode_id)
        if where is None or not self._writable:
            return
        try:
            catalogue = Catalogue(self._path)
            try:
                catalogue.unmark_synced(episode_id, where)
            finally:
                catalogue.close()
        except StoreError as error:
            raise RecordingError(
                f"there is no good copy of episode {episode_id} at {where} any more, but the store "
                f"{self._root} cannot be told so ({error.what})",
                "do not prune it; check its disk and permissions and run sync again",
            ) from error
        del self._counted[episode_id]

    def deleted(self, episode_id: str) -> bool:
        """Whether the episode is in the catalogue no more. Raises StoreError."""
        catalogue = Catalogue(self._path, readonly=True)
        try:
            return episode_id not in catalogue.ids()
        finally:
            catalogue.close()


def mark_synced(root: Path, episode_id: str, digest: str, where: str) -> None:
    """Note in the catalogue of the store at ``root`` that a checked copy is at ``where``.

    Raises StoreError.
    """
    try:
        catalogue = Catalogue(root / "catalogue.sqlite")
        try:
            catalogue.mark_synced(episode_id, digest, where)
        finally:
            catalogue.close()
    except StoreError as error:
        raise RecordingError(
            f"episode {episode_id} is at {where}, but the store {root} cannot be told so ({error.what})",
            "check its disk and permissions and run it again; until then the episode counts as not synced",
        ) from error
