"""Who was answered by which version: a report about an episode counts only from whoever it drove."""

from __future__ import annotations

from collections import deque

_MAX_SESSIONS = 1024
_MAX_SERVED = 8


#: A session and whose it is: a name that is free again may be taken by somebody else.
Whose = tuple[str, str]


class Answered:
    """For each of the last 1024 sessions the last 8 versions, each in its epoch. Gone at a restart."""

    def __init__(self) -> None:
        self._by_session: dict[Whose, deque[tuple[str, int]]] = {}

    def note(self, session: Whose, version: str, epoch: int) -> None:
        """A session has had an answer."""
        served = self._by_session.pop(session, None)
        if served is None:
            served = deque(maxlen=_MAX_SERVED)
            if len(self._by_session) >= _MAX_SESSIONS:
                del self._by_session[next(iter(self._by_session))]
        if (version, epoch) not in served:
            served.append((version, epoch))
        self._by_session[session] = served  # at the end: the first was silent longest

    def has(self, session: Whose, version: str, epoch: int = 0) -> bool:
        """Whether it has had one of that version; in that epoch, where one is named."""
        served = self._by_session.get(session, ())
        return any(version == had and epoch in (0, then) for had, then in served)
