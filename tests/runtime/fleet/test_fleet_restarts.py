"""Kills and restarts of robot and broker: no command runs twice, none is left without an answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import aiomqtt
import pytest
from fleet_helpers import TOPICS, RobotProcess, listening, operator, publish, replies, running, statuses

from runtime.fleet.agent import FleetAgent
from runtime.fleet.config import FleetConfig
from tests.runtime.broker import Broker
from tests.runtime.memory_facade import MemoryFacade
from tests.runtime.waiting import eventually


@pytest.mark.parametrize(("hang", "effects"), [("before", ["journalled"]), ("during", ["pick"])])
async def test_killed_in_the_middle_of_a_command_it_is_interrupted_never_run_again(
    config: FleetConfig, tmp_path: Path, hang: str, effects: list[str]
) -> None:
    async with listening(config, f"{TOPICS.root}/#") as heard, operator(config) as fleet:
        command = fleet.command("koch", "start_episode", {"task": "pick"}, lifetime_s=60)
        robot = RobotProcess(config, tmp_path, hang)
        try:
            await eventually(lambda: ("ONLINE", 1) in statuses(heard))
            await publish(config, command)
            await eventually(lambda: robot.lines() == effects)
        finally:
            robot.kill()
        assert [reply for reply in replies(heard) if reply.final] == []
        robot = RobotProcess(config, tmp_path)
        try:
            await eventually(lambda: [reply for reply in replies(heard) if reply.final])
            await publish(config, command, times=3)
            await eventually(lambda: len([reply for reply in replies(heard) if reply.final]) >= 4)
        finally:
            robot.kill()
        final = [reply for reply in replies(heard) if reply.final]
        assert {reply.state for reply in final} == {"INTERRUPTED"}
        assert robot.lines() == effects


async def test_a_command_in_hand_when_the_robot_dies_comes_again(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    """The acknowledgement follows the journal: what was not written down is delivered again."""
    agent = FleetAgent(config, "lab", "koch", facade)
    reached = asyncio.Event()

    async def never(message: aiomqtt.Message) -> None:
        reached.set()
        await asyncio.Event().wait()

    agent._inbox.receive = never  # type: ignore[method-assign, assignment]
    async with operator(config) as fleet:
        async with running(agent):
            waiting = asyncio.create_task(fleet.send("koch", "start_episode", {"task": "pick"}))
            await reached.wait()
        assert facade.names() == []
        async with running(FleetAgent(config, "lab", "koch", facade)):
            assert (await waiting).state == "SUCCEEDED"
    assert facade.names() == ["start_episode"]


async def test_a_long_backlog_is_answered_to_the_last(config: FleetConfig, facade: MemoryFacade) -> None:
    async with running(FleetAgent(config, "lab", "koch", facade)):
        pass
    async with listening(config, TOPICS.response("raw")) as heard, operator(config) as fleet:
        for _ in range(100):
            await publish(config, fleet.command("koch", "ping", lifetime_s=120))
        async with running(FleetAgent(config, "lab", "koch", facade)):
            await eventually(lambda: len([reply for reply in replies(heard) if reply.final]) == 100)


async def test_commands_sent_while_the_robot_was_away_wait_but_not_beyond_their_expiry(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    async with running(FleetAgent(config, "lab", "koch", facade)):
        pass
    async with listening(config, TOPICS.response("raw")) as heard, operator(config) as fleet:
        late = fleet.command("koch", "start_episode", {"task": "late"}, lifetime_s=1)
        good = fleet.command("koch", "start_episode", {"task": "good"}, lifetime_s=60)
        await publish(config, late)
        await publish(config, good)
        await asyncio.sleep(1.2)
        async with running(FleetAgent(config, "lab", "koch", facade)):
            await eventually(lambda: len([reply for reply in replies(heard) if reply.final]) == 2)
        assert {reply.id: reply.state for reply in replies(heard) if reply.final} == {
            late.id: "EXPIRED",
            good.id: "SUCCEEDED",
        }
    assert [argument for _, argument, _ in facade.calls] == ["good"]


async def test_a_broker_restart_is_survived_and_results_are_delivered_after_it(
    config: FleetConfig, facade: MemoryFacade, broker: Broker
) -> None:
    facade.gate = asyncio.Event()
    agent = FleetAgent(config, "lab", "koch", facade)
    async with running(agent):
        async with operator(config) as fleet:
            command = fleet.command("koch", "set_policy", {"bundle": "a"}, lifetime_s=120)
        await publish(config, command)
        await facade.called("set_policy")
        await asyncio.to_thread(broker.stop)
        await eventually(lambda: not agent.connected)
        facade.gate.set()  # it is finished while nobody can be told
        await asyncio.sleep(0.5)
        await asyncio.to_thread(broker.start)
        async with listening(config, f"{TOPICS.root}/#") as heard:
            await eventually(lambda: agent.connected)
            await eventually(lambda: [reply for reply in replies(heard) if reply.final], timeout_s=20)
            assert replies(heard)[-1].state == "SUCCEEDED"
            await eventually(lambda: any(state == "ONLINE" and n >= 2 for state, n in statuses(heard)))
        async with operator(config) as fleet:
            assert (await fleet.send("koch", "ping")).state == "SUCCEEDED"
    assert facade.names() == ["set_policy"]


async def test_a_broker_that_is_not_there_yet_costs_little_and_nothing_else(
    config: FleetConfig, facade: MemoryFacade, broker: Broker
) -> None:
    broker.stop()
    agent = FleetAgent(config, "lab", "koch", facade)
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(0.5)
    assert not task.done()
    await agent.event("fault", joint="gripper")
    await asyncio.to_thread(broker.start)
    async with listening(config, TOPICS.event) as heard:
        await eventually(lambda: heard)
    attempts = agent._session
    assert 2 <= attempts < 60
    started_s = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started_s < 5.0


async def test_random_kills_under_a_stream_of_commands(config: FleetConfig, tmp_path: Path) -> None:
    """Each command has at most one effect, exactly one if it succeeded, and each gets its final state."""
    rng = random.Random(7)
    sent: list[str] = []
    async with listening(config, f"{TOPICS.root}/#") as heard, operator(config) as fleet:

        async def stream() -> None:
            while True:
                command = fleet.command("koch", "start_episode", {"task": f"t{len(sent)}"}, lifetime_s=120)
                sent.append(command.id)
                await publish(config, command, times=rng.choice((1, 2)))
                await asyncio.sleep(0.02)

        finals = lambda: {reply.id: reply.state for reply in replies(heard) if reply.final}  # noqa: E731
        robot = RobotProcess(config, tmp_path)
        await eventually(lambda: ("ONLINE", 1) in statuses(heard))
        sender = asyncio.create_task(stream())
        try:
            for _ in range(5):
                done, lines = len(robot.lines()), robot.lines
                await eventually(lambda n=done, lines=lines: len(lines()) > n, timeout_s=30)
                await asyncio.sleep(rng.uniform(0.0, 0.2))
                robot.kill()
                robot = RobotProcess(config, tmp_path)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await eventually(lambda: set(sent[:-1]) <= set(finals()), timeout_s=30)
        finally:
            sender.cancel()
            robot.kill()
    effects = Counter(robot.lines())
    assert set(effects.values()) == {1}
    for number, one in enumerate(sent[:-1]):
        state = finals()[one]
        assert state in ("SUCCEEDED", "INTERRUPTED", "REJECTED")  # REJECTED: too many waiting
        assert effects[f"t{number}"] in {"SUCCEEDED": (1,), "INTERRUPTED": (0, 1), "REJECTED": (0,)}[state]
