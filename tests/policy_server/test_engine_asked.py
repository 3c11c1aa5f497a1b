"""What the event loop makes of an engine's answer, whole, in pieces, of nonsense, late or never."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from policy_server import engine_asked
from policy_server.engine_asked import Asked
from policy_server.hanging import Patience, Seen
from tests.runtime.waiting import eventually

Ends = tuple[socket.socket, socket.socket]


def message(value: object) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack("<I", len(body)) + body


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, its = socket.socketpair()
    ours.setblocking(False)
    with ours, its:
        yield ours, its


def ask(end: socket.socket, seen: Seen | None = None) -> tuple[Asked, list[Any]]:
    told: list[Any] = []
    looks = seen or Seen(1.0, True)
    return Asked(end, lambda: Patience(lambda: looks, 0.001, 1), told.append), told


async def soon(told: list[Any]) -> Any:
    await eventually(lambda: bool(told))
    await asyncio.sleep(0.01)
    (one,) = told
    return one


async def test_an_answer_may_come_in_pieces(ends: Ends) -> None:
    ours, its = ends
    _, told = ask(ours)
    for byte in message({"a": 1}):
        assert not told
        its.send(bytes([byte]))
        await asyncio.sleep(0.001)
    assert await soon(told) == {"a": 1}


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"\xff\xff\xff\xff", "no answer"),
        (message([1]), "no answer"),
        (message({}) + b"x", "no answer"),
        (struct.pack("<I", 3) + b"{{{", "no answer"),
        (struct.pack("<I", 2) + b"\xff\xff", "no answer"),
    ],
)
async def test_nonsense_is_no_answer(ends: Ends, said: bytes, word: str) -> None:
    ours, its = ends
    _, told = ask(ours)
    its.send(said)
    assert word in await soon(told)


async def test_an_end_is_noticed_at_once(ends: Ends) -> None:
    ours, its = ends
    _, told = ask(ours)
    its.send(message({})[:3])
    its.close()
    assert await soon(told) == "is gone"


async def test_what_stands_still_is_given_up_and_what_was_cancelled_is_silent(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_asked, "FIRST_LOOK_S", 0.01)
    monkeypatch.setattr(engine_asked, "LOOK_S", 0.11)
    ours, its = ends
    _, told = ask(ours, Seen(1.0, False))
    assert "stands still" in await soon(told)
    asked, told = ask(ours)
    asked.cancel()
    asked.cancel()
    its.send(message({}))
    await asyncio.sleep(0.01)
    assert told == []


async def test_a_look_that_fails_is_not_the_last(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left to look with: it is tried again, and the limit stays."""
    monkeypatch.setattr(engine_asked, "FIRST_LOOK_S", 0.01)
    monkeypatch.setattr(engine_asked, "LOOK_S", 0.01)
    looks = 0

    def look() -> Seen:
        nonlocal looks
        looks += 1
        raise OSError(24, "Too many open files")

    ours, its = ends
    told: list[Any] = []
    Asked(ours, lambda: Patience(look, 0.001, 1), told.append)
    await eventually(lambda: looks > 2)
    assert told == []
    its.send(message({"a": 1}))
    assert await soon(told) == {"a": 1}
    monkeypatch.setattr(engine_asked, "LIMIT_S", 0.05)
    told.clear()
    Asked(ours, lambda: Patience(look, 0.001, 1), told.append)
    assert "did not answer" in await soon(told)
