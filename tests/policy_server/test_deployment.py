"""Probation and the way back, through a server's gRPC interface."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import tiny

from policies.bundle import Bundle
from policy_server.probation import ProbationConfig
from protos.ratchet.v1 import policy_pb2 as pb
from tools.bench.swap_bundles import nan_when_blinded

Code = grpc.StatusCode
WATCHED = ProbationConfig(episodes=20, in_a_row=4, assumed_failures=0.2)


async def test_a_bundle_whose_failures_rise_is_rolled_back_and_stays_so(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        for i in range(12):
            await run.report(a.version, f"a{i}", False)
        await run.load(b)
        now = await run.status()
        assert (now.probation.version, now.probation.predecessor) == (b.version, a.version)
        assert now.probation.bound < 0.3
        verdicts = []
        for i in range(5):
            verdicts.append((await run.report(b.version, f"b{i}", False, "stall")).verdict)
            if verdicts[-1] == "rolled back":
                break
        assert verdicts[-1] == "rolled back"
        now = await run.status()
        assert [slot.version for slot in now.slots if slot.active] == [a.version]
        assert [(bar.version, bar.by_server) for bar in now.barred] == [(b.version, True)]
        assert now.events[-1].kind == "rolled back"
        assert not now.HasField("probation")
        error = await run.refusal(run.load(b))
        assert error.code() is Code.FAILED_PRECONDITION
        assert "only a person" in error.details()
        assert "failed" in error.details()
    # Also a restarted server knows, and a person may put it back.
    async with running(config) as run:
        assert "only a person" in (await run.refusal(run.load(b))).details()
        assert (await run.load(b, by_person=True)).active
        assert not (await run.status()).barred


async def test_a_good_bundle_passes_and_is_not_given_up_later(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    quick = ProbationConfig(episodes=3, in_a_row=4)
    async with running(place.config(bundle=a.path, probation=quick)) as run:
        await run.load(b)
        verdicts = [(await run.report(b.version, f"b{i}", False)).verdict for i in range(3)]
        assert verdicts == ["probation", "probation", "passed"]
        for i in range(6):
            assert (await run.report(b.version, f"c{i}", True)).verdict == ""
        assert (await run.status()).events[-1].kind == "passed"
        assert (await run.report(b.version, "c0", True)).counted is False


@pytest.fixture
def good_and_blinded(place: Any) -> tuple[Bundle, Bundle]:
    """The second is fine on golden vectors and on every made-up observation, NaN where the robot stands."""
    good = place.bundle("a")
    graph = nan_when_blinded(good.read("model.onnx"), limit=5.0, source="state")
    return good, place.bundle("b", model=graph)


async def test_weights_that_give_no_answer_are_given_up_after_a_few_requests(
    place, running, good_and_blinded
):
    a, b = good_and_blinded
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        for tick in range(WATCHED.failed_inferences):
            error = await run.refusal(run.stub.Infer(tiny.make_request(tick, state=9.0), timeout=5))
            assert "NaN" in error.details()
        answer = await run.stub.Infer(tiny.make_request(9, state=9.0), timeout=5)
        assert answer.version == a.version
        assert "without an answer" in (await run.status()).barred[0].reason


async def test_joints_that_no_robot_has_are_not_the_bundles_failure(place, running, good_and_blinded):
    a, b = good_and_blinded
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        for tick in range(3 * WATCHED.failed_inferences):
            error = await run.refusal(run.stub.Infer(tiny.make_request(tick, state=50.0), timeout=5))
            assert error.code() is Code.INTERNAL
        for absurd in (3e38, -2e4):
            error = await run.refusal(run.stub.Infer(tiny.make_request(state=absurd), timeout=5))
            assert error.code() is Code.INVALID_ARGUMENT
        now = await run.status()
        assert [slot.version for slot in now.slots if slot.active] == [b.version]
        assert not now.barred


async def test_a_chain_of_unproven_bundles_goes_back_to_the_one_that_proved_itself(place, running):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        await run.load(c)
        for i in range(4):
            answer = await run.report(c.version, f"c{i}", True)
        assert (answer.verdict, answer.serving) == ("rolled back", a.version)


@pytest.mark.parametrize("without_probation", [False, True])
async def test_by_hand_too_a_chain_goes_back_to_the_one_that_proved_itself(place, running, without_probation):
    a, b, c = place.bundle("a"), place.bundle("b", 1.0), place.bundle("c", 2.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        await run.load(c, without_probation=without_probation)
        assert (await run.status()).previous == a.version
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=5)).version == a.version
        assert not (await run.status()).HasField("probation")


async def test_back_to_the_one_before_ends_a_probation_and_bars_nobody(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    config = place.config(bundle=a.path, probation=WATCHED, state=place.root / "state.json")
    async with running(config) as run:
        await run.load(b)
        await run.load(a)
        now = await run.status()
        assert not now.HasField("probation")
        assert "replaced" in now.events[-1].reason
        for i in range(WATCHED.episodes):
            assert (await run.report(a.version, f"a{i}", True)).verdict == ""
        assert not (await run.status()).barred
        assert (await run.load(b)).active
    async with running(config) as run:
        assert (await run.status()).probation.predecessor == a.version


async def test_only_who_was_answered_by_a_version_reports_about_it(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path, probation=WATCHED)) as run:
        await run.load(b)
        for i in range(2 * WATCHED.episodes):
            answer = await run.report(b.version, f"b{i}", True, drive=False)
            assert (answer.counted, answer.verdict, answer.serving) == (False, "", b.version)
        assert (await run.report(b.version, "b0", False)).counted
        assert not (await run.report(a.version, "a0", False)).counted
        request = pb.ReportRequest(session="r", version=b.version, episode="b1", epoch=77)
        assert not (await run.stub.Report(request, timeout=5)).counted
        assert (await run.status()).probation.episodes == 1


async def test_reports_that_make_no_sense_are_refused(place, running):
    a = place.bundle("a")
    async with running(place.config(bundle=a.path)) as run:
        error = await run.refusal(run.report("0" * 12, "e", True))
        assert error.code() is Code.NOT_FOUND
        error = await run.refusal(run.report(a.version, "", True))
        assert error.code() is Code.INVALID_ARGUMENT
        error = await run.refusal(run.report(a.version, "e", True, *["stall"] * 65))
        assert error.code() is Code.INVALID_ARGUMENT
