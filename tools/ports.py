"""Loopback ports: one that is free, and whether somebody listens at one."""

from __future__ import annotations

import socket

_HOST = "127.0.0.1"


def free_port() -> int:
    """A loopback port nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether a process accepts connections at that loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0
