"""Commands over a real broker: one effect each, one answer each, or a reason."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import msgspec
import pytest
from fleet_helpers import OTHER, TOPICS, listening, operator, publish, replies, running

from runtime.fleet.agent import FleetAgent
from runtime.fleet.client import FleetError
from runtime.fleet.config import FleetConfig
from tests.runtime.broker import Broker
from tests.runtime.memory_facade import MemoryFacade
from tests.runtime.waiting import eventually


async def test_commands_are_done_and_answered(config: FleetConfig, facade: MemoryFacade) -> None:
    async with running(FleetAgent(config, "lab", "koch", facade)), operator(config) as fleet:
        assert (await fleet.send("koch", "ping")).state == "SUCCEEDED"
        started = await fleet.send("koch", "start_episode", {"task": "pick"})
        assert (started.state, started.version) == ("SUCCEEDED", 3)
        again = await fleet.send("koch", "start_episode", {"task": "pick"})
        assert (again.state, again.code) == ("FAILED", "RefusedError")
        assert "end it first" in again.detail
        assert (await fleet.send("koch", "start_policy")).state == "SUCCEEDED"
        status = await fleet.send("koch", "status")
        assert status.result["mode"] == "policy"
        assert (await fleet.send("koch", "set_policy", {"bundle": "abc"})).result == {"version": "abc"}
        ended = await fleet.send("koch", "end_episode", {"outcome": "success"})
        assert (ended.result["frames"], ended.result["flags"]) == (12, ["stall"])
        assert (await fleet.send("koch", "hold")).state == "SUCCEEDED"
        assert facade.mode == "hold"
        assert (await fleet.send("koch", "estop", {"reason": "smoke"})).state == "SUCCEEDED"
        assert (await fleet.send("koch", "start_policy")).code == "MODE"
    assert (facade.mode, facade.reason) == ("estop", "smoke")


async def test_one_id_has_one_effect_and_every_duplicate_its_answer(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    async with listening(config, TOPICS.response("+")) as heard, operator(config) as fleet:
        command = fleet.command("koch", "start_episode", {"task": "pick"})
        agent = FleetAgent(config, "lab", "koch", facade)
        async with running(agent):
            await publish(config, command, times=5)
            await eventually(lambda: agent.stats.duplicates == 4 and len(replies(heard)) == 6)
        assert facade.names() == ["start_episode"]
        async with running(FleetAgent(config, "lab", "koch", facade)):  # the journal remembers
            await publish(config, command)
            await eventually(lambda: len(replies(heard)) == 7)
        assert facade.names() == ["start_episode"]
        assert replies(heard)[-1].state == "SUCCEEDED"
        assert {reply.id for reply in replies(heard)} == {command.id}


async def test_what_must_not_be_done_is_refused_with_its_reason(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    agent = FleetAgent(config, "lab", "koch", facade)
    async with listening(config, TOPICS.response("raw")) as heard, operator(config) as fleet:
        expired = fleet.command("koch", "hold", lifetime_s=-1)
        elsewhere = fleet.command("other", "hold")
        unsigned = msgspec.structs.replace(fleet.command("koch", "hold"), signature="0" * 128)
        async with operator(config, OTHER, "eve") as eve:
            forged = eve.command("koch", "estop")
        async with running(agent):
            for wrong, code in ((expired, "EXPIRED"), (elsewhere, "AUDIENCE"), (unsigned, "SIGNATURE"),
                                (forged, "SIGNATURE")):  # fmt: skip
                heard.clear()
                await publish(config, wrong, topic=TOPICS.command(wrong.op))
                await eventually(lambda: replies(heard))
                assert replies(heard)[0].code == code
            heard.clear()
            await publish(config, fleet.command("koch", "hold"), retain=True)
            await eventually(lambda: replies(heard))
            assert replies(heard)[0].code == "RETAINED"
        assert facade.names() == []
        assert facade.mode == "ready"
        again = FleetAgent(config, "lab", "koch", facade)
        async with running(again):  # it is still retained: offered again at every subscription
            await eventually(lambda: again.stats.refused["RETAINED"] == 1)
        assert facade.names() == []
    assert agent.stats.refused == {"EXPIRED": 1, "AUDIENCE": 1, "SIGNATURE": 2, "RETAINED": 1}


async def test_an_estop_overtakes_what_is_stuck_and_waiting(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    facade.gate = asyncio.Event()
    async with running(FleetAgent(config, "lab", "koch", facade)), operator(config) as fleet:
        for number in range(3):
            await publish(config, fleet.command("koch", "set_policy", {"bundle": f"b{number}"}))
        await facade.called("set_policy")
        assert (await fleet.send("koch", "estop")).state == "SUCCEEDED"
        assert facade.names() == ["set_policy", "estop"]
        facade.gate.set()
        await eventually(lambda: facade.names().count("set_policy") == 3)


async def test_a_command_that_waited_too_long_is_not_done(config: FleetConfig, facade: MemoryFacade) -> None:
    facade.gate = asyncio.Event()
    async with running(FleetAgent(config, "lab", "koch", facade)), operator(config) as fleet:
        await publish(config, fleet.command("koch", "set_policy", {"bundle": "a"}))
        await facade.called("set_policy")
        waiting = asyncio.create_task(fleet.send("koch", "start_episode", {"task": "pick"}, lifetime_s=1))
        await asyncio.sleep(1.2)
        facade.gate.set()
        assert (await waiting).state == "EXPIRED"
        assert "start_episode" not in facade.names()


async def test_a_hanging_operation_times_out(config: FleetConfig, facade: MemoryFacade) -> None:
    facade.gate = asyncio.Event()
    quick = config.model_copy(update={"command_timeout_s": 0.2})
    async with running(FleetAgent(quick, "lab", "koch", facade)), operator(config) as fleet:
        reply = await fleet.send("koch", "set_policy", {"bundle": "a"})
        assert (reply.state, reply.code) == ("TIMED_OUT", "TIMEOUT")


async def test_a_broken_journal_keeps_nobody_from_stopping_the_arm(
    config: FleetConfig, facade: MemoryFacade
) -> None:
    agent = FleetAgent(config, "lab", "koch", facade)
    async with running(agent), operator(config) as fleet:
        with contextlib.closing(sqlite3.connect(config.journal)) as other:
            other.execute("DROP TABLE commands")
            other.commit()
        assert (await fleet.send("koch", "start_policy")).code == "JOURNAL"
        await publish(config, fleet.command("koch", "estop"))
        await eventually(lambda: facade.mode == "estop")
    assert facade.names() == ["estop"]


async def test_nobody_there_is_one_line(config: FleetConfig, broker: Broker) -> None:
    async with operator(config) as fleet:
        command = fleet.command("koch", "ping")
        with pytest.raises(FleetError, match="did not answer"):
            await fleet.deliver("koch", command, timeout_s=0.3)
    broker.stop()
    with pytest.raises(FleetError, match="no MQTT broker"):
        async with operator(config):
            pass
