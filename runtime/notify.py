"""systemd's notify protocol, and a watchdog that only progress can feed.

``Watchdog.check`` kicks systemd's watchdog when every watched counter has advanced since the last
kick. A timer that kicks on its own would keep a runtime alive whose control loop hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

from runtime.errors import RuntimeFault

_log = logging.getLogger(__name__)


class NotifyError(RuntimeFault):
    """NOTIFY_SOCKET names something that cannot be a notify socket."""


class Notifier:
    """Sends state to the service manager; every method does nothing when there is none.

    ``address`` is the value of NOTIFY_SOCKET: a path, or ``@name`` for the abstract namespace.
    Sending never blocks and a lost datagram is not an error: the manager may have gone.
    """

    def __init__(self, address: str | None) -> None:
        self._address: str | None = None
        self._socket: socket.socket | None = None
        if not address:
            return
        if address[0] not in "/@" or len(address) < 2:
            raise NotifyError(
                f"NOTIFY_SOCKET={address!r} is no path", "start the runtime through systemd, or unset it"
            )
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )

    @classmethod
    def from_environment(cls) -> Notifier:
        """The notifier of this process as systemd started it."""
        return cls(os.environ.get("NOTIFY_SOCKET"))

    def ready(self, status: str = "") -> None:
        """Start-up is complete."""
        self.send("READY=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self.send(f"STATUS={_line(status)}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self.send("STOPPING=1")

    def watchdog(self) -> None:
        """Kick the watchdog."""
        self.send("WATCHDOG=1")

    def send(self, state: str) -> bool:
        """Send raw assignments; True when the manager's socket took them."""
        if self._socket is None or self._address is None:
            return False
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            _log.warning("notify not delivered state=%s error=%s", state.split("=", 1)[0], error)
            return False
        return True

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def watchdog_period_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Seconds within which systemd wants a kick from ``pid``, or None when it wants none."""
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        usec = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return usec / 1e6 if usec > 0 else None


class Watchdog:
    """Kicks when, and only when, everything watched moved on.

    ``progress`` maps a name to a function that returns a counter (ticks, store writes, …). Any
    change counts as progress, so that a counter may start over.
    """

    def __init__(self, notifier: Notifier, progress: Mapping[str, Callable[[], int]]) -> None:
        self._notifier = notifier
        self._progress = dict(progress)
        self._seen: dict[str, int] = {}
        self.stuck: tuple[str, ...] = ()

    def check(self) -> bool:
        """Kick if all counters changed since the last kick; ``stuck`` names those that did not."""
        now = {name: read() for name, read in self._progress.items()}
        stuck = tuple(name for name, value in now.items() if self._seen.get(name) == value)
        if stuck:
            if stuck != self.stuck:
                _log.warning("watchdog withheld stuck=%s", ",".join(stuck))
            self.stuck = stuck
            return False
        self._seen, self.stuck = now, ()
        self._notifier.watchdog()
        return True

    async def run(self, period_s: float) -> None:
        """Check every quarter of ``period_s`` until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(period_s / 4)


def _line(status: str) -> str:
    return " ".join(status.split())[:200]
