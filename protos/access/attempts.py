"""Attempts to identify that fail: bounded for each origin and in all, before anything is verified."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import unquote

from protos.access.errors import TooFastError
from protos.access.limits import RateLimit

_TOTAL = "all"
_TOTAL_BURST_S = 2.0
_HOST_BITS_V6 = 64  # a host on IPv6 usually has as many addresses of its own as it likes


class FailedAttempts:
    """``per_s`` failures a second from one origin, ``burst`` at once, and ``total_per_s`` from all.

    Both tables are bounded. Only failures count, so nobody who is known pays for strangers at the same
    address.
    """

    def __init__(
        self, per_s: float, burst: float, total_per_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._origins = RateLimit(per_s, burst, now)
        self._total = RateLimit(total_per_s, max(total_per_s * _TOTAL_BURST_S, 1.0), now)
        self.refused = 0

    def check(self, origin: str, *, proven: bool = False) -> None:
        """Raise TooFastError while ``origin``, or all together, have failed too often.

        An origin that was ``proven`` answers for itself only.
        """
        for limit, name, who in self._limits(origin, proven):
            if not limit.has_left(name):
                self.refused += 1
                raise TooFastError(f"too many failed attempts from {who}", "wait, then show a valid identity")

    def failed(self, origin: str, *, proven: bool = False) -> None:
        """Count one."""
        for limit, name, _ in self._limits(origin, proven):
            if limit.has_left(name):
                limit.take(name)

    def _limits(self, origin: str, proven: bool) -> list[tuple[RateLimit, str, str]]:
        own = (self._origins, origin, origin)
        return [own] if proven else [own, (self._total, _TOTAL, "strangers")]


def origin_of(peer: str) -> str:
    """Where a gRPC peer (``ipv4:1.2.3.4:5``, ``ipv6:[::1]:5``, ``unix:``) calls from: no port, and of an
    IPv6 address the network."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind[:64]
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return kind
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _HOST_BITS_V6), strict=False))
