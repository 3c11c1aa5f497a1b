"""Probation, the way back and the memory of a server, through its gRPC interface."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import grpc
import pytest
import tiny

from policy_server.errors import RefusedBundleError
from policy_server.probation import ProbationConfig
from policy_server.standing import (
    MAX_BARRED,
    MAX_EPISODE,
    Bar,
    Place,
    Standing,
    Trial,
    read_standing,
    write_standing,
)
from policy_server.trial import Judge
from protos.ratchet.v1 import policy_pb2 as pb
from tools.bench.swap_bundles import nan_when_blinded

Code = grpc.StatusCode
WATCHED = ProbationConfig(episodes=20, in_a_row=4, assumed_failures=0.2)


async def load(stub: Any, bundle: Any, **over: Any) -> pb.LoadResponse:
    request = pb.LoadRequest(path=str(bundle.path), activate=True, **over)
    return await stub.Load(request, timeout=30)


async def report(
    stub: Any, version: str, episode: str, failed: bool, *flags: str, drive: bool = True
) -> pb.ReportResponse:
    """Of a session that what serves has just answered; with ``drive`` off of one that it has not."""
    if drive:
        await stub.Infer(tiny.make_request(session="r"), timeout=5)
    request = pb.ReportRequest(session="r", version=version, episode=episode, failed=failed, flags=flags)
    return await stub.Report(request, timeout=5)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def status(stub: Any) -> pb.StatusResponse:
    return await stub.Status(pb.StatusRequest(), timeout=5)


async def test_a_bundle_whose_failures_rise_is_rolled_back_and_stays_so(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        for i in range(12):
            await report(run.stub, a.version, f"a{i}", False)
        await load(run.stub, b)
        now = await status(run.stub)
        assert (now.probation.version, now.probation.predecessor) == (b.version, a.version)
        assert now.probation.bound < 0.3
        verdicts = []
        for i in range(5):
            verdicts.append((await report(run.stub, b.version, f"b{i}", False, "stall")).verdict)
            if verdicts[-1] == "rolled back":
                break
        assert verdicts[-1] == "rolled back"
        now = await status(run.stub)
        assert [slot.version for slot in now.slots if slot.active] == [a.version]
        assert [(bar.version, bar.by_server) for bar in now.barred] == [(b.version, True)]
        assert now.events[-1].kind == "rolled back"
        assert not now.HasField("probation")
        error = await refusal(load(run.stub, b))
        assert error.code() is Code.FAILED_PRECONDITION
        assert "only a person" in error.details()
        assert "failed" in error.details()
    # Also a restarted server knows, and a person may put it back.
    async with running(config) as run:
        assert "only a person" in (await refusal(load(run.stub, b))).details()
        assert (await load(run.stub, b, by_person=True)).active
        assert not (await status(run.stub)).barred


async def test_a_good_bundle_passes_and_is_not_given_up_later(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    quick = ProbationConfig(episodes=3, in_a_row=4)
    async with running(place.config(bundle=a.path, probation=quick)) as run:
        await load(run.stub, b)
        verdicts = [(await report(run.stub, b.version, f"b{i}", False)).verdict for i in range(3)]
        assert verdicts == ["probation", "probation", "passed"]
        for i in range(6):
            assert (await report(run.stub, b.version, f"c{i}", True)).verdict == ""
        assert (await status(run.stub)).events[-1].kind == "passed"
        assert (await report(run.stub, b.version, "c0", True)).counted is False


async def test_a_restart_in_the_middle_of_a_probation_goes_on_with_it(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        await load(run.stub, b)
        for i in range(3):
            await report(run.stub, b.version, f"b{i}", True)
    async with running(config) as run:
        now = await status(run.stub)
        assert [slot.version for slot in now.slots if slot.active] == [b.version]
        assert (now.probation.failures, now.previous) == (3, a.version)
        assert (await report(run.stub, b.version, "b3", True)).verdict == "rolled back"
        assert (await report(run.stub, a.version, "a0", False)).serving == a.version
    async with running(config) as run:
        assert [slot.version for slot in (await status(run.stub)).slots if slot.active] == [a.version]


async def way_back(run: Any) -> str:
    """The version that is gone back to, once the server has loaded or given up what it remembers of it."""
    for _ in range(3000):
        if not run.server.servicer.deployment.restoring:
            break
        await asyncio.sleep(0.01)
    return (await status(run.stub)).previous


async def test_after_a_restart_without_a_probation_one_call_still_goes_back(place, running):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    config = place.config(bundle=a.path, state=place.root / "state.json")
    async with running(config) as run:
        await load(run.stub, b, without_probation=True)
    for _ in range(2):  # also a restart after a restart
        async with running(config) as run:
            assert await way_back(run) == a.version
            now = await status(run.stub)
            assert [slot.version for slot in now.slots if slot.active] == [b.version]
    async with running(config) as run:  # asked for before it is there
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=30)).version == a.version
    async with running(config) as run:
        assert await way_back(run) == ""
        await load(run.stub, c, without_probation=True)
    async with running(config) as run:
        first = await load(run.stub, b, by_person=True, without_probation=True)
        assert (first.active, await way_back(run)) == (True, c.version)


@pytest.mark.parametrize("harm", ["gone", "tampered", "another"])
async def test_a_way_back_that_cannot_be_loaded_again_is_said_and_serving_goes_on(place, running, harm):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, state=place.root / "state.json")
    async with running(config) as run:
        await load(run.stub, b, without_probation=True)
    if harm == "tampered":
        with (a.path / "model.onnx").open("r+b") as file:
            file.write(b"X")
    else:
        shutil.rmtree(a.path)
        if harm == "another":
            place.bundle("a", 3.0)
    for restart in range(2):
        async with running(config) as run:
            assert await way_back(run) == ""
            now = await status(run.stub)
            assert [slot.version for slot in now.slots if slot.active] == [b.version]
            said = [(event.kind, event.version) for event in now.events]
            assert said.count(("no way back", a.version)) == 1, f"restart {restart}"
            error = await refusal(run.stub.Rollback(pb.RollbackRequest(), timeout=30))
            assert error.code() is Code.FAILED_PRECONDITION


def test_the_longest_memory_that_is_written_can_be_read_again(tmp_path):
    standing, worst = Standing(), "\x01"  # six bytes in JSON
    judge = Judge(WATCHED, standing)
    for i in range(MAX_BARRED + 5):
        judge.bar(f"{i:04d}" + 60 * worst, 600 * worst, by_server=True)
        standing.record(f"{i:04d}" + 60 * worst)
        standing.first_report_of(f"{i:04d}" + (MAX_EPISODE - 4) * worst)
        standing.note("swapped", 64 * worst, 64 * worst, 512 * worst)
    place = Place(version=64 * worst, path=4096 * worst, backend=32 * worst)
    standing.serving = standing.previous = standing.fallback = place
    standing.configured = 4096 * worst
    text = standing.model_dump_json()
    write_standing(tmp_path / "state.json", text)
    kept = read_standing(tmp_path / "state.json")
    assert kept.model_dump_json() == text
    assert len(kept.barred) == MAX_BARRED
    assert f"{4:04d}" + 60 * worst not in kept.barred
    assert f"{5:04d}" + 60 * worst in kept.barred


def test_a_bar_that_is_forgotten_is_an_event():
    standing = Standing()
    for i in range(MAX_BARRED + 1):
        standing.bar(f"{i}", Bar(reason="falls", wall="", by_server=True))
    assert (standing.events[-1].kind, standing.events[-1].version) == ("bar forgotten", "0")
    assert "falls" in standing.events[-1].reason


async def test_a_server_is_not_started_with_what_was_rolled_back(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    state = place.root / "state.json"
    async with running(place.config(bundle=a.path, probation=WATCHED, state=state)) as run:
        await load(run.stub, b)
        await run.stub.Rollback(pb.RollbackRequest(why="drops the cube"), timeout=5)
    with pytest.raises(RefusedBundleError, match="drops the cube"):
        async with running(place.config(bundle=b.path, probation=WATCHED, state=state)):
            pass


async def test_weights_that_give_no_answer_are_given_up_after_a_few_requests(place, running):
    # Fine on golden vectors and on every made-up observation, NaN where the robot stands.
    a = place.bundle("a")
    graph = nan_when_blinded(a.read("model.onnx"), limit=5.0, source="state")
    b = place.bundle("b", model=graph)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        for tick in range(WATCHED.failed_inferences):
            error = await refusal(run.stub.Infer(tiny.make_request(tick, state=9.0), timeout=5))
            assert "NaN" in error.details()
        answer = await run.stub.Infer(tiny.make_request(9, state=9.0), timeout=5)
        assert answer.version == a.version
        assert "without an answer" in (await status(run.stub)).barred[0].reason


async def test_joints_that_no_robot_has_are_not_the_bundles_failure(place, running):
    a = place.bundle("a")
    graph = nan_when_blinded(a.read("model.onnx"), limit=5.0, source="state")
    b = place.bundle("b", model=graph)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        for tick in range(3 * WATCHED.failed_inferences):
            error = await refusal(run.stub.Infer(tiny.make_request(tick, state=50.0), timeout=5))
            assert error.code() is Code.INTERNAL
        for absurd in (3e38, -2e4):
            error = await refusal(run.stub.Infer(tiny.make_request(state=absurd), timeout=5))
            assert error.code() is Code.INVALID_ARGUMENT
        now = await status(run.stub)
        assert [slot.version for slot in now.slots if slot.active] == [b.version]
        assert not now.barred


async def test_a_chain_of_unproven_bundles_goes_back_to_the_one_that_proved_itself(place, running):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        await load(run.stub, c)
        for i in range(4):
            answer = await report(run.stub, c.version, f"c{i}", True)
        assert (answer.verdict, answer.serving) == ("rolled back", a.version)


@pytest.mark.parametrize("without_probation", [False, True])
async def test_by_hand_too_a_chain_goes_back_to_the_one_that_proved_itself(place, running, without_probation):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        await load(run.stub, c, without_probation=without_probation)
        assert (await status(run.stub)).previous == a.version
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=5)).version == a.version
        assert not (await status(run.stub)).HasField("probation")


async def test_back_to_the_one_before_ends_a_probation_and_bars_nobody(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        await load(run.stub, b)
        await load(run.stub, a)
        now = await status(run.stub)
        assert not now.HasField("probation")
        assert "replaced" in now.events[-1].reason
        for i in range(WATCHED.episodes):
            assert (await report(run.stub, a.version, f"a{i}", True)).verdict == ""
        assert not (await status(run.stub)).barred
        assert (await load(run.stub, b)).active
    async with running(config) as run:
        assert (await status(run.stub)).probation.predecessor == a.version


async def test_a_memory_in_which_the_serving_version_is_barred_is_set_right(place, running):
    a = place.bundle("a")
    state = place.root / "state.json"
    config = place.config(bundle=a.path, probation=WATCHED, state=state)
    async with running(config):
        pass
    kept = read_standing(state)
    kept.fallback = kept.serving
    kept.trial = Trial(version=a.version, predecessor=a.version, bound=0.5, left_s=60.0)
    kept.barred = {a.version: Bar(reason="4 of 4 failed", wall="2026-01-01", by_server=True)}
    write_standing(state, kept.model_dump_json())
    async with running(config) as run:
        now = await status(run.stub)
        assert [slot.version for slot in now.slots if slot.active] == [a.version]
        assert (len(now.barred), now.HasField("probation")) == (0, False)
        assert now.events[-1].kind == "bar lifted"


async def test_only_who_was_answered_by_a_version_reports_about_it(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        for i in range(2 * WATCHED.episodes):
            answer = await report(run.stub, b.version, f"b{i}", True, drive=False)
            assert (answer.counted, answer.verdict, answer.serving) == (False, "", b.version)
        assert (await report(run.stub, b.version, "b0", False)).counted
        assert not (await report(run.stub, a.version, "a0", False)).counted
        request = pb.ReportRequest(session="r", version=b.version, episode="b1", epoch=77)
        assert not (await run.stub.Report(request, timeout=5)).counted
        assert (await status(run.stub)).probation.episodes == 1


async def test_reports_that_make_no_sense_are_refused(place, running):
    a = place.bundle("a")
    async with running(place.config(bundle=a.path)) as run:
        error = await refusal(report(run.stub, "0" * 12, "e", True))
        assert error.code() is Code.NOT_FOUND
        error = await refusal(report(run.stub, a.version, "", True))
        assert error.code() is Code.INVALID_ARGUMENT
        error = await refusal(report(run.stub, a.version, "e", True, *["stall"] * 65))
        assert error.code() is Code.INVALID_ARGUMENT


async def test_a_shadow_needs_a_process_of_its_own(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        error = await refusal(run.stub.Shadow(pb.ShadowRequest(bundle=str(b.path)), timeout=30))
        assert "isolation" in error.details()


@pytest.fixture
def shadows_in_threads(monkeypatch):
    """Let a bundle without a process be a shadow, as long as nothing is asked."""
    monkeypatch.setattr("policy_server.shadow.ProcessSession", object)


async def test_the_way_back_is_no_shadow_once_it_serves(place, running, shadows_in_threads):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await load(run.stub, b)
        assert (await run.stub.Shadow(pb.ShadowRequest(bundle=a.version, seconds=600), timeout=30)).running
        for i in range(4):
            answer = await report(run.stub, b.version, f"b{i}", True)
        assert (answer.verdict, answer.serving) == ("rolled back", a.version)
        now = (await status(run.stub)).shadow
        assert (now.version, now.running, now.reason) == (a.version, False, "it serves now")
        assert "shadow" not in run.server.servicer.slots.pinned
        await load(run.stub, b, by_person=True)
        await run.stub.Shadow(pb.ShadowRequest(bundle=a.version, seconds=600), timeout=30)
        await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert not (await status(run.stub)).shadow.running


async def test_a_shadow_whose_threads_could_never_serve_again_is_refused(
    place, running, shadows_in_threads, monkeypatch
):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    monkeypatch.setattr("policy_server.shadow.can_come_back", lambda: False)
    ask = pb.ShadowRequest(bundle=str(b.path))
    async with running(place.config(bundle=a.path, threads=2)) as run:
        assert "LimitNICE" in (await refusal(run.stub.Shadow(ask, timeout=30))).details()
        assert (await status(run.stub)).slots[0].active
    async with running(place.config(bundle=a.path, threads=1)) as run:
        assert (await run.stub.Shadow(ask, timeout=30)).running


async def test_a_shadow_whose_time_is_over_is_not_kept_in_memory(place, running, shadows_in_threads):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        await run.stub.Shadow(pb.ShadowRequest(bundle=str(b.path), seconds=0.01), timeout=30)
        await asyncio.sleep(0.02)
        run.server.servicer.tick(0.0)
        assert "shadow" not in run.server.servicer.slots.pinned
        now = (await status(run.stub)).shadow
        assert (now.version, now.running, now.reason) == (b.version, False, "its time is over")
