"""One attacker, a process of its own: ``python -m tools.hostile.attack``; what came of it as JSON."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import grpc

from tools.hostile.connections import CONNECTIONS
from tools.hostile.messages import MESSAGES, PREFIX, Call, sound

T = TypeVar("T")

_AT_ONCE = 48
_DEADLINE_S = 10.0
_SLOW_S = 0.4
_METADATA_BYTES = 6000
_CONNECTION_SHARE = 0.05
_STREAM_SHARE = 0.02
_CHUNK = 500
_OPTIONS = (("grpc.max_send_message_length", 64 * 2**20), ("grpc.use_local_subchannel_pool", 1))


class Attack:
    """``count`` requests to ``host:port``; ``kinds`` and ``statuses`` count what was sent and what came."""

    def __init__(self, host: str, port: int, count: int, seed: int) -> None:
        self.host, self.port, self.count = host, port, count
        self.rng = random.Random(seed)
        self.base = sound(self.rng)
        self.kinds: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.given_up = 0

    async def run(self) -> None:
        """All of them, at most 48 at once; a line of progress now and then."""
        done = 0
        async with grpc.aio.insecure_channel(f"{self.host}:{self.port}", options=_OPTIONS) as channel:
            while done < self.count:
                chunk = min(_CHUNK, self.count - done)
                gate = asyncio.Semaphore(_AT_ONCE)
                await asyncio.gather(*(self._one(channel, gate) for _ in range(chunk)))
                done += chunk
                sys.stderr.write(f"{done}\n")
                sys.stderr.flush()

    async def _one(self, channel: grpc.aio.Channel, gate: asyncio.Semaphore) -> None:
        async with gate:
            draw = self.rng.random()
            if draw < _CONNECTION_SHARE:
                kind, action = _choose(self.rng, CONNECTIONS)
                self.kinds[kind] += 1
                await action(self.host, self.port, random.Random(self.rng.random()))
            elif draw < _CONNECTION_SHARE + _STREAM_SHARE:
                await self._stream(channel)
            else:
                kind, make = _choose(self.rng, MESSAGES)
                self.kinds[kind] += 1
                await self._call(channel, make(self.rng, self.base))

    async def _call(self, channel: grpc.aio.Channel, call: Call) -> None:
        method, data = call
        metadata = (("x-junk", "y" * self.rng.choice((0, 100, _METADATA_BYTES))),)
        request = channel.unary_unary(method, None, None)(data, timeout=_DEADLINE_S, metadata=metadata)
        if self.rng.random() < 0.05:  # gives up at once
            self.given_up += 1
            request.cancel()
        self.statuses[(await request.code()).name] += 1

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """Requests without end whose answers nobody reads, or a stream that is left standing."""
        slow = self.rng.random() < 0.5
        self.kinds["slow_reader" if slow else "half_stream"] += 1

        async def requests() -> AsyncIterator[bytes]:
            for _ in range(20 if slow else 1):
                yield self.base.SerializeToString()
            await asyncio.sleep(_SLOW_S)

        call = channel.stream_stream(PREFIX + "InferStream", None, None)(requests(), timeout=_DEADLINE_S)
        await asyncio.sleep(_SLOW_S)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self.statuses[(await call.code()).name] += 1


def _choose(rng: random.Random, table: Mapping[str, tuple[T, float]]) -> tuple[str, T]:
    """A row of ``table``, by the shares in it."""
    names = list(table)
    name = rng.choices(names, [table[n][1] for n in names])[0]
    return name, table[name][0]


def main() -> None:
    """Attack as the arguments say."""
    parser = argparse.ArgumentParser(description="hostile requests for a policy server")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    attack = Attack(options.host, options.port, options.count, options.seed)
    asyncio.run(attack.run())
    print(json.dumps({"kinds": attack.kinds, "statuses": attack.statuses, "given_up": attack.given_up}))


if __name__ == "__main__":
    main()
