"""Engines that die or hang where nobody looks: as the way back, as a shadow, while others are loaded."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections import Counter
from typing import Any

import grpc
import pytest
import tiny
from load import Load

from policy_server import loader, revival
from policy_server.probation import ProbationConfig
from protos.ratchet.v1 import policy_pb2 as pb
from tests.processes import runs
from tests.runtime.waiting import eventually
from tools.bench.swap_bundles import nan_when_blinded

Code = grpc.StatusCode
WATCHED = ProbationConfig(episodes=20)
STRANGE = 9.0  # joints that a blinded bundle answers with NaN; others answer


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each bundle was loaded, by its directory's name."""
    counts: Counter[str] = Counter()
    load = loader.load_slot

    def counted(path: Any, *rest: Any) -> Any:
        counts[path.name] += 1
        return load(path, *rest)

    monkeypatch.setattr(loader, "load_slot", counted)
    return counts


async def ask(run: Any, state: float = 0.0) -> str | Code:
    """The version that answers, or how the request is refused."""
    try:
        return (await run.stub.Infer(tiny.make_request(1, state=state), timeout=3)).version
    except grpc.aio.AioRpcError as error:
        return error.code()


async def pids(run: Any) -> dict[str, int]:
    return {slot.version: slot.pid for slot in (await run.status()).slots}


async def kill(run: Any, version: str) -> int:
    """End an engine, all of its threads; its pid."""
    slot = run.server.servicer.slots.find(version)
    os.kill(slot.pid, signal.SIGKILL)
    await eventually(lambda: not slot.alive)
    return int(slot.pid)


async def test_a_dead_engine_is_loaded_once_and_before_it_is_gone_back_to(place, running, loads, monkeypatch):
    monkeypatch.setattr(revival, "_ATTEMPTS", 2)
    monkeypatch.setattr(revival, "_FIRST_PAUSE_S", 0.01)
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path, isolation="process")) as run:
        await run.load(b, without_probation=True)
        client = Load(run.stub, pause_s=0.01)
        dead = await kill(run, a.version)
        assert dead not in (await pids(run)).values(), "what is not there is not listed"
        back = await run.stub.Rollback(pb.RollbackRequest(), timeout=20)
        assert (back.version, back.previous) == (a.version, b.version)
        await client.more(3)
        await client.stop()  # raises if any request failed
        assert {event.kind: event.version for event in (await run.status()).events[-2:]} == {
            "revived": a.version,
            "rolled back": b.version,
        }
        # It dies again, with nothing to go back to: many ask at once, and one load is enough.
        before = loads.copy()
        await kill(run, a.version)
        failed = 0
        async with asyncio.timeout(20):
            while await ask(run) != a.version:
                failed += 1
        assert failed > 3 * WATCHED.failed_inferences
        assert not (await run.stub.Load(pb.LoadRequest(path=str(b.path)), timeout=20)).active
        assert loads - before == {"a": 1, "b": 1}
        # One that cannot be loaded any more is said not to be there, and what serves goes on.
        await run.stub.Swap(pb.SwapRequest(version=b.version, by_person=True, without_probation=True))
        assert (await run.status()).previous == a.version
        shutil.rmtree(a.path)
        await kill(run, a.version)
        refused = await run.refusal(run.stub.Rollback(pb.RollbackRequest(), timeout=20))
        assert refused.code() is Code.FAILED_PRECONDITION
        assert await ask(run) == b.version
        await eventually(lambda: run.server.servicer.slots.previous is None)
        now = await run.status()
        assert [slot.version for slot in now.slots] == [b.version]
        assert (now.events[-1].kind, now.events[-1].version) == ("no way back", a.version)
        assert not now.barred


async def stop_under_way(run: Any, version: str) -> int:
    """Have a resident version be a shadow whose engine stands still in the middle of a run; its pid."""
    await run.stub.Shadow(pb.ShadowRequest(bundle=version, seconds=600), timeout=5)
    pid = (await pids(run))[version]
    os.kill(pid, signal.SIGSTOP)
    shadow = run.server.servicer.deployment.shadows._shadow
    async with asyncio.timeout(20):
        while not shadow.busy:
            assert isinstance(await ask(run), str)
    return pid


async def test_a_shadow_that_hangs_holds_up_no_request_no_swap_and_no_way_back(place, running):
    a = place.bundle("a")
    blind = place.bundle("b", model=nan_when_blinded(a.read("model.onnx"), limit=5.0, source="state"))
    config = place.config(bundle=a.path, isolation="process", threads=1, probation=WATCHED)
    async with running(config) as run:
        await run.load(blind)
        hung = await stop_under_way(run, a.version)
        # The way back is made ready behind what serves, which is asked on.
        seen = []
        async with asyncio.timeout(20):
            while not seen or seen[-1] != a.version:
                seen += [await ask(run, state) for state in (*(3 * [STRANGE]), 0.0)]
        assert set(seen) == {Code.INTERNAL, blind.version, a.version}, "none waited for the shadow"
        assert not runs(hung)
        now = await run.status()
        assert ([bar.version for bar in now.barred], now.shadow.running) == ([blind.version], False)
        # By hand: stopped in time, and a swap to it has it loaded again first.
        hung = await stop_under_way(run, blind.version)
        assert not (await run.stub.Shadow(pb.ShadowRequest(stop=True), timeout=5)).running
        assert await ask(run) == a.version
        await run.stub.Swap(pb.SwapRequest(version=blind.version, by_person=True), timeout=20)
        assert await ask(run) == blind.version
        assert not runs(hung)
        await eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("shadow")])


async def test_a_probation_that_fails_goes_on_until_its_dead_way_back_is_loaded(place, running):
    a = place.bundle("a")
    blind = place.bundle("b", model=nan_when_blinded(a.read("model.onnx"), limit=5.0, source="state"))
    async with running(place.config(bundle=a.path, isolation="process", probation=WATCHED)) as run:
        await run.load(blind)
        await kill(run, a.version)
        for _ in range(WATCHED.failed_inferences):
            assert await ask(run, STRANGE) is Code.INTERNAL
        answers = []
        async with asyncio.timeout(20):
            while not answers or answers[-1] != a.version:
                answers.append(await ask(run))
        assert set(answers) == {blind.version, a.version}, "no request failed for want of an engine"
        now = await run.status()
        assert [event.kind for event in now.events][-2:] == ["revived", "rolled back"]
        assert [bar.version for bar in now.barred] == [blind.version]
