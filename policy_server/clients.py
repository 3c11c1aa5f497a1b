"""What the server knows of each client: how it fares, and how much of the server it has had."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from policy_server.errors import OverloadedError, PeerError

#: A client that was not heard of for so long is forgotten.
FORGET_NS = 60 * 10**9
_ACTIVE_NS = 10**9


@dataclass(slots=True, eq=False)
class Client:
    """One session, and the name of whoever opened it, which only that caller may use.

    ``service`` is its share so far in the scheduler's virtual time (`schedule`).
    """

    session: str
    owner: str = ""
    seen_ns: int = field(default_factory=time.monotonic_ns)
    served: int = 0
    dropped: int = 0
    refused: int = 0
    failed: int = 0
    in_flight: int = 0
    shared: int = 0
    sent: int = 0
    service: float = 0.0


class Clients:
    """A bounded table of clients. Owned by the event loop."""

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._clients: dict[str, Client] = {}

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self._clients.values()))

    def __len__(self) -> int:
        return len(self._clients)

    def check(self, session: str, owner: str) -> None:
        """Raise PeerError when a session was opened by somebody else than ``owner``."""
        client = self._clients.get(session)
        if client is not None and client.owner != owner:
            raise PeerError(f"session {session!r} is somebody else's; choose another name for yours")

    def seen(self, session: str, owner: str = "") -> Client:
        """The client of that name, heard of now, from ``owner``.

        Raises PeerError when it is somebody else's and OverloadedError when there are too many.
        """
        self.check(session, owner)
        now = time.monotonic_ns()
        client = self._clients.pop(session, None)
        if client is None:
            self.forget(now)
            if len(self._clients) >= self._max_clients:
                raise OverloadedError(
                    f"{len(self._clients)} clients are being served already; come back when one has gone"
                )
            client = Client(session, owner)
        client.seen_ns = now
        self._clients[session] = client  # at the end: the table is in order of last sight
        return client

    def forget(self, now_ns: int) -> None:
        """Forget who was silent for long; and, when the table is full, who was silent longest."""
        for client in tuple(self._clients.values()):
            silent = now_ns - client.seen_ns > FORGET_NS
            full = len(self._clients) >= self._max_clients and now_ns - client.seen_ns > _ACTIVE_NS
            if not (silent or full):
                break
            if not client.in_flight:
                del self._clients[client.session]

    def expected(self, now_ns: int) -> int:
        """How many clients have asked within the last second and have nothing in flight: more may come."""
        return sum(1 for c in self._clients.values() if not c.in_flight and now_ns - c.seen_ns < _ACTIVE_NS)
