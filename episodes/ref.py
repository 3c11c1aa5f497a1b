"""What ``end`` hands back: an episode on its way to the disk."""

from __future__ import annotations

import threading

from episodes.errors import RecordingError, StoreError
from episodes.spec import EpisodeMeta


class EpisodeRef:
    """A finished episode on its way to the disk."""

    def __init__(self, episode_id: str) -> None:
        self.id = episode_id
        self._done = threading.Event()
        self._meta: EpisodeMeta | None = None
        self._error: StoreError | None = None

    def wait(self, timeout_s: float | None = None) -> EpisodeMeta:
        """Wait until the episode is published; its metadata.

        Raises the StoreError that kept it from being published (its journal is kept), or
        RecordingError after ``timeout_s``.
        """
        if not self._done.wait(timeout_s):
            raise RecordingError(f"episode {self.id} is not published after {timeout_s} s", "wait longer")
        if self._error is not None:
            raise self._error
        assert self._meta is not None
        return self._meta

    @property
    def done(self) -> bool:
        """True when published or failed."""
        return self._done.is_set()

    def resolve(self, meta: EpisodeMeta | None, error: StoreError | None) -> None:
        """Called once, by the writer's thread."""
        self._meta, self._error = meta, error
        self._done.set()
