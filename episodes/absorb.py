"""Taking in the episodes of another store: how several recorder processes end up in one.

Each process records into a store of its own; afterwards one of them (or a tool) absorbs the rest.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from episodes.errors import RecordingError
from episodes.files import FileLayer, io_error
from episodes.marker import read_marker
from episodes.publish import PARTIAL
from episodes.store import EpisodeStore


def absorb(store: EpisodeStore, other: Path | str) -> list[str]:
    """Move every episode of the store at ``other`` into ``store``; the ids moved.

    The other store is opened for writing, hence recovered first, and left empty but valid. A crash in
    between leaves each episode in one of the two. Raises StoreLockedError while ``other`` is in use,
    RecordingError when an id exists in both or the disk fails.
    """
    moved = []
    target = store.root / "episodes"
    with EpisodeStore.open(other, create=False) as source:
        ids = [i for i in source.ids() if (source.root / "episodes" / i).is_dir()]
        twice = [i for i in ids if (target / i).exists()]
        if twice:
            raise RecordingError(
                f"episode {twice[0]} of {source.root} exists in {store.root}", "delete one of them"
            )
        for episode_id in ids:
            folder = source.root / "episodes" / episode_id
            try:
                _move(folder, target / episode_id)
                FileLayer().sync_path(target)
            except OSError as error:
                raise io_error(error, target / episode_id) from error
            store.catalogue.put(read_marker(target / episode_id), durable=True)
            source.catalogue.remove(episode_id)
            moved.append(episode_id)
    return moved


def _move(source: Path, target: Path) -> None:
    """Rename, or copy and sync when the two stores are on different disks."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    FileLayer().sync_filesystem(partial)
    partial.rename(target)
    shutil.rmtree(source)
