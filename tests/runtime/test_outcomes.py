"""What the policy server is told of episodes, and that nothing is lost while it is away."""

from __future__ import annotations

import asyncio

import pytest

import runtime.outcomes as outcomes
from runtime.outcomes import Drive, Outcome, Outcomes
from runtime.policy_types import PolicyRefusedError, PolicyUnavailableError
from runtime.supervisor import State


class Server:
    """Takes outcomes, or raises what it is told to, once each."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.told: list[Outcome] = []

    async def report(self, outcome: Outcome) -> str:
        if self.errors:
            raise self.errors.pop(0)
        self.told.append(outcome)
        return "probation"


def drive(*versions: str, taken_over: bool = False) -> Drive:
    made = Drive()
    for version in versions:
        made.answered(version)
    made.taken_over = taken_over
    return made


async def sent(server: Server, told: Outcomes, n: int) -> list[Outcome]:
    sending = asyncio.create_task(told.send())
    for _ in range(1000):
        if len(server.told) >= n:
            break
        await asyncio.sleep(0.001)
    sending.cancel()
    return server.told


async def test_each_episode_is_told_once_also_when_the_server_was_away(monkeypatch) -> None:
    monkeypatch.setattr(outcomes, "_RETRY_S", 0.001)
    server = Server(PolicyUnavailableError("gone"), PolicyUnavailableError("gone"))
    told = Outcomes(server)
    told.ended("e1", drive("a"), False, {"stall", "timeout"})
    told.ended("e2", drive("a"), True, ())
    told.ended("e3", drive("a", taken_over=True), False, ())
    told.ended("e4", drive("a", "b"), False, ())
    told.ended("nobody", drive(), True, ())  # no policy drove
    assert await sent(server, told, 4) == [
        Outcome("e1", "a", False, ("stall", "timeout"), False),
        Outcome("e2", "a", True, (), False),
        Outcome("e3", "a", True, (), False),
        Outcome("e4", "b", False, (), True),
    ]


async def test_what_the_server_refuses_is_not_told_again() -> None:
    server = Server(PolicyRefusedError("not counted"))
    told = Outcomes(server)
    told.ended("e1", drive("a"), False, ())
    told.ended("e2", drive("a"), False, ())
    assert [outcome.episode for outcome in await sent(server, told, 1)] == ["e2"]


@pytest.mark.parametrize(
    ("state", "running", "n"), [(State.POLICY, None, 1), (State.POLICY, "e", 0), (State.HOLD, None, 0)]
)
async def test_a_policy_that_drives_without_an_episode_is_told_by_the_minute(
    monkeypatch, state, running, n
) -> None:
    monkeypatch.setattr(outcomes, "_LOOK_S", 0.001)
    monkeypatch.setattr(outcomes, "SPAN_S", 0.02)

    class Loop:
        drive = drive("a")

    class Recorder:
        pass

    loop, recorder, server = Loop(), Recorder(), Server()
    loop.state, recorder.running = state, running
    loop.drive.kinds.add("stall")
    told = Outcomes(server)
    watching = asyncio.create_task(told.watch(loop, recorder))
    await asyncio.sleep(0.3)
    watching.cancel()
    found = await sent(server, told, n)
    assert len(found) == n
    assert all((o.version, o.failed, o.flags) == ("a", False, ("stall",)) for o in found)
