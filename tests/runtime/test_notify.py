"""sd_notify datagrams reach the manager's socket; the watchdog is fed by progress only."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.notify import Notifier, NotifyError, Watchdog, watchdog_period_s


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A stand-in for the service manager's socket, and its address as NOTIFY_SOCKET gives it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@ratchet-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address[0] == "@" else address)
        sock.settimeout(2.0)
        yield sock, address


def test_ready_with_status_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier(address)
    notifier.ready("two cameras,\nsix motors")
    assert sock.recv(1024) == b"READY=1\nSTATUS=two cameras, six motors"
    notifier.close()
    notifier.close()
    assert notifier.send("WATCHDOG=1") is False


def test_without_a_manager_nothing_happens() -> None:
    assert Notifier(None).send("READY=1") is False
    assert Notifier("").send("READY=1") is False


def test_a_manager_that_went_away_is_no_error(tmp_path: Path) -> None:
    assert Notifier(str(tmp_path / "gone")).send("READY=1") is False


def test_a_senseless_address_is_refused() -> None:
    with pytest.raises(NotifyError, match="NOTIFY_SOCKET"):
        Notifier("tcp:1234")


def test_watchdog_kicks_only_when_everything_moved(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    counters = {"ticks": 0, "store": 0}
    watchdog = Watchdog(Notifier(address), {name: lambda n=name: counters[n] for name in counters})
    assert watchdog.check()
    counters["ticks"] += 1
    assert not watchdog.check()
    assert watchdog.stuck == ("store",)
    counters["store"] += 1
    assert watchdog.check()
    assert not watchdog.check()
    assert watchdog.stuck == ("ticks", "store")
    assert [sock.recv(64), sock.recv(64)] == [b"WATCHDOG=1", b"WATCHDOG=1"]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(64)


async def test_a_hanging_loop_stops_the_kicks_although_the_timer_runs(
    manager: tuple[socket.socket, str],
) -> None:
    sock, address = manager
    ticks = 0
    task = asyncio.create_task(Watchdog(Notifier(address), {"ticks": lambda: ticks}).run(period_s=0.04))
    for _ in range(5):
        ticks += 1
        await asyncio.sleep(0.02)
    sock.setblocking(False)
    kicks = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(64):
            kicks += 1
    assert kicks >= 2
    await asyncio.sleep(0.05)
    with contextlib.suppress(BlockingIOError):
        sock.recv(64)  # the last tick may have been seen meanwhile
    await asyncio.sleep(0.1)
    with pytest.raises(BlockingIOError):
        sock.recv(64)
    task.cancel()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "8"}, None),
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_period(environment: dict[str, str], expected: float | None) -> None:
    assert watchdog_period_s(environment, pid=7) == expected
