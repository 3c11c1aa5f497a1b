"""Connections that do harm below the messages: garbage, half-open streams, slow readers, resets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from tools.hostile.target import Target

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HOLD_S = 0.5
_PATIENCE_S = 2.0
_TLS_ALERT = b"\x15"  # RFC 8446, section 5.1: how plaintext is turned away
_FRAME_BYTES = 16_384  # the largest there may be before SETTINGS say otherwise
_MOST_BYTES = 16 * _FRAME_BYTES


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


async def _exchange(target: Target, rng: random.Random, data: bytes, hold_s: float) -> None:
    """Connect, send, read nothing for ``hold_s``, leave without a word."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE_S + hold_s):
            _, writer = await target.connect(rng)
            try:
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(hold_s)
            finally:
                writer.transport.abort()


async def knock(target: Target, rng: random.Random, method: str, message: bytes) -> bool:
    """Begin a call of ``method`` without asking whether anybody listens; whether anybody does."""
    path = method.encode()
    headers = b"\x83\x86\x44" + bytes((len(path),)) + path + b"\x5f\x10application/grpc"
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    data = PREFACE + _SETTINGS + _frame(1, 0x4, 1, headers)
    for start in range(0, min(len(body), _MOST_BYTES), _FRAME_BYTES):
        data += _frame(0, 0, 1, body[start : start + _FRAME_BYTES])
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await target.connect(rng)
            try:
                writer.write(data)
                return await reader.read(1) not in (b"", _TLS_ALERT)
            finally:
                writer.transport.abort()
    return False


async def garbage(target: Target, rng: random.Random) -> None:
    """Bytes that are no HTTP/2, with or without its preface before them."""
    head = rng.choice((b"", PREFACE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
    await _exchange(target, rng, head + rng.randbytes(rng.choice((1, 50, 2000, 70_000))), 0.0)


async def half_open(target: Target, rng: random.Random) -> None:
    """A connection, a stream or a frame that is begun and never ended."""
    begun = (b"PRI * HT", PREFACE, PREFACE + _SETTINGS + _frame(1, 0, 1, b"")[:7])
    await _exchange(target, rng, rng.choice(begun), _HOLD_S)


async def resets(target: Target, rng: random.Random) -> None:
    """Streams that are opened and reset by the hundred (CVE-2023-44487)."""
    headers = b"\x83\x86\x44\x0a/ratchet.x\x5f\x10application/grpc"
    data = PREFACE + _SETTINGS
    for number in range(1, 200, 2):
        data += _frame(1, 0x4, number, headers) + _frame(3, 0, number, b"\x00\x00\x00\x08")
    await _exchange(target, rng, data, 0.05)


async def floods(target: Target, rng: random.Random) -> None:
    """Pings and settings that each want an answer, which nobody reads."""
    one = rng.choice((_frame(6, 0, 0, b"12345678"), _SETTINGS))
    await _exchange(target, rng, PREFACE + _SETTINGS + one * 2000, 0.05)


#: What is done, and how large a part of all connections it is.
CONNECTIONS: dict[str, tuple[Callable[[Target, random.Random], Awaitable[None]], float]] = {
    "garbage": (garbage, 0.5),
    "half_open": (half_open, 0.35),
    "resets": (resets, 0.1),
    "floods": (floods, 0.05),
}
