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
from pathlib import Path
from typing import TypeVar

import grpc

from tools.hostile.connections import CONNECTIONS, knock
from tools.hostile.messages import MESSAGES, PREFIX, Call, sound
from tools.hostile.target import Target

T = TypeVar("T")

_AT_ONCE = 48
_DEADLINE_S = 10.0
_SLOW_S = 0.4
_METADATA_BYTES = 6000
_CONNECTION_SHARE = 0.05
_STREAM_SHARE = 0.02
_CHUNK = 500

#: What became of a call without the certificate that the server demands.
LET_IN, SHUT_OUT = "LET_IN", "SHUT_OUT"


class Attack:
    """``count`` requests to ``target``; ``kinds`` and ``statuses`` count what was sent and what came."""

    def __init__(self, target: Target, count: int, seed: int) -> None:
        self.target, self.count = target, count
        self.rng = random.Random(seed)
        self.base = sound(self.rng)
        self.kinds: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.given_up = 0

    async def run(self) -> None:
        """All of them, at most 48 at once; a line of progress now and then."""
        if not self.target.invited:
            await self._all(None)
            return
        async with self.target.channel() as channel:
            await self._all(channel)

    async def _all(self, channel: grpc.aio.Channel | None) -> None:
        done = 0
        while done < self.count:
            chunk = min(_CHUNK, self.count - done)
            gate = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(self._one(channel, gate) for _ in range(chunk)))
            done += chunk
            sys.stderr.write(f"{done}\n")
            sys.stderr.flush()

    async def _one(self, channel: grpc.aio.Channel | None, gate: asyncio.Semaphore) -> None:
        async with gate:
            draw = self.rng.random()
            if draw < _CONNECTION_SHARE:
                kind, action = _choose(self.rng, CONNECTIONS)
                self.kinds[kind] += 1
                await action(self.target, random.Random(self.rng.random()))
            elif channel is not None and draw < _CONNECTION_SHARE + _STREAM_SHARE:
                await self._stream(channel)
            else:
                kind, make = _choose(self.rng, MESSAGES)
                self.kinds[kind] += 1
                call = make(self.rng, self.base)
                if channel is None:
                    inside = await knock(self.target, random.Random(self.rng.random()), *call)
                    self.statuses[LET_IN if inside else SHUT_OUT] += 1
                else:
                    await self._call(channel, call)

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
    parser.add_argument("--identity", type=Path, help="folder with ca.pem, and client.pem if there is one")
    options = parser.parse_args()
    target = Target(options.host, options.port, options.identity)
    attack = Attack(target, options.count, options.seed)
    asyncio.run(attack.run())
    print(json.dumps({"kinds": attack.kinds, "statuses": attack.statuses, "given_up": attack.given_up}))


if __name__ == "__main__":
    main()
