"""A second bundle that only looks: who may be one, when it ends, what is said of it."""

from __future__ import annotations

import asyncio

import pytest

from policy_server.probation import ProbationConfig
from protos.ratchet.v1 import policy_pb2 as pb

WATCHED = ProbationConfig(episodes=20, in_a_row=4, assumed_failures=0.2)


async def test_a_shadow_needs_a_process_of_its_own(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        error = await run.refusal(run.stub.Shadow(pb.ShadowRequest(bundle=str(b.path)), timeout=30))
        assert "isolation" in error.details()


@pytest.fixture
def shadows_in_threads(monkeypatch):
    """Let a bundle without a process be a shadow, as long as nothing is asked."""
    monkeypatch.setattr("policy_server.shadow.ProcessSession", object)


async def test_the_way_back_is_no_shadow_once_it_serves(place, running, shadows_in_threads):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        assert (await run.stub.Shadow(pb.ShadowRequest(bundle=a.version, seconds=600), timeout=30)).running
        for i in range(4):
            answer = await run.report(b.version, f"b{i}", True)
        assert (answer.verdict, answer.serving) == ("rolled back", a.version)
        now = (await run.status()).shadow
        assert (now.version, now.running, now.reason) == (a.version, False, "it serves now")
        assert "shadow" not in run.server.servicer.slots.pinned
        await run.load(b, by_person=True)
        await run.stub.Shadow(pb.ShadowRequest(bundle=a.version, seconds=600), timeout=30)
        await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert not (await run.status()).shadow.running


async def test_a_shadow_whose_threads_could_never_serve_again_is_refused(
    place, running, shadows_in_threads, monkeypatch
):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    monkeypatch.setattr("policy_server.shadow.can_come_back", lambda: False)
    ask = pb.ShadowRequest(bundle=str(b.path))
    async with running(place.config(bundle=a.path, threads=2)) as run:
        assert "LimitNICE" in (await run.refusal(run.stub.Shadow(ask, timeout=30))).details()
        assert (await run.status()).slots[0].active
    async with running(place.config(bundle=a.path, threads=1)) as run:
        assert (await run.stub.Shadow(ask, timeout=30)).running


async def test_a_shadow_whose_time_is_over_is_not_kept_in_memory(place, running, shadows_in_threads):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        await run.stub.Shadow(pb.ShadowRequest(bundle=str(b.path), seconds=0.01), timeout=30)
        await asyncio.sleep(0.02)
        run.server.servicer.tick(0.0)
        assert "shadow" not in run.server.servicer.slots.pinned
        now = (await run.status()).shadow
        assert (now.version, now.running, now.reason) == (b.version, False, "its time is over")
