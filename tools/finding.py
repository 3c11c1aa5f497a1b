"""Episodes by the beginning of their id."""

from __future__ import annotations

from episodes.errors import UnknownEpisodeError
from episodes.store import EpisodeStore
from tools.errors import UsageError


def full_id(store: EpisodeStore, given: str) -> str:
    """The one episode id that begins with ``given``. Raises UsageError, UnknownEpisodeError."""
    ids = store.ids()
    if given in ids:
        return given
    found = [i for i in ids if i.startswith(given)]
    if len(found) > 1:
        raise UsageError(f"{len(found)} episodes begin with {given!r}: {found[0]}, {found[1]} …; say more")
    if not found:
        raise UnknownEpisodeError(f"no episode {given!r} in {store.root}", "see `ratchet episodes ls`")
    return found[0]
