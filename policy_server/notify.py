"""Tells systemd how the service is (sd_notify(3)): ready, stopping, one status line, still alive."""

from __future__ import annotations

import os
import socket


def notify(*fields: str) -> bool:
    """Send fields such as ``READY=1`` to the service manager; False when none listens.

    The socket is named by NOTIFY_SOCKET, which is systemd's protocol; ``@`` marks an abstract one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(fields).encode(), address)
        except OSError:  # the manager went away: nothing to tell, and no reason to stop serving
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of the watchdog's time, the interval to feed it at; None when there is none."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
