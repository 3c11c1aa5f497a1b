"""Episodes by the beginning of their id, and the instant their times are counted from."""

from __future__ import annotations

from episodes.errors import UnknownEpisodeError
from episodes.reader import Episode
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


def first_sample_ns(episode: Episode) -> int:
    """When the first row or frame was captured: what "seconds into the episode" are counted from.

    Not ``started_ns``: a simulated arm's samples are stamped by the simulator's clock.
    """
    clocks = {stream.time: name for name, stream in episode.meta.streams.items()}
    times = [episode.streams[name].t_ns for name in clocks.values()]
    times += [episode.frames(camera).t_ns for camera in episode.cameras]
    return min((int(t[0]) for t in times if len(t)), default=episode.meta.started_ns)
