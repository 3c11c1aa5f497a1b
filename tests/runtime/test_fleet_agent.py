"""The fleet agent on a real broker: presence, commands with one effect each, kills and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiomqtt
import msgspec
import pytest
import uvloop
from broker import Broker
from certificates import Authority
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_facade import MemoryFacade
from waiting import eventually

from runtime.fleet import transport
from runtime.fleet.agent import FleetAgent
from runtime.fleet.client import FleetClient, FleetError, Presence, watch_presence
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, Reply, encode
from runtime.fleet.topics import Topics

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
TOPICS = Topics("lab", "koch")
ROBOT = Path(__file__).parent / "fleet_robot.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def config(broker: Broker, tmp_path: Path) -> FleetConfig:
    return FleetConfig(
        port=broker.port,
        plaintext=True,
        journal=tmp_path / "fleet.db",
        keys={"ops": {"public": KEY.public_key().public_bytes_raw().hex(), "role": "deploy"}},
        keepalive_s=2,
        connect_timeout_s=2.0,
        will_delay_s=0,
        backoff_min_s=0.05,
        backoff_max_s=0.4,
        state_poll_s=0.02,
        telemetry_period_s=0.1,
    )


@pytest.fixture
def facade() -> MemoryFacade:
    facade = MemoryFacade()
    facade.mode = "ready"
    return facade


@contextlib.asynccontextmanager
async def running(agent: FleetAgent) -> AsyncIterator[FleetAgent]:
    task = asyncio.create_task(agent.run())
    try:
        await eventually(lambda: agent.connected or task.done())
        yield agent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def listening(config: FleetConfig, topic: str) -> AsyncIterator[list[aiomqtt.Message]]:
    """Everything published under ``topic`` from now on, retained first."""
    heard: list[aiomqtt.Message] = []

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            heard.append(message)

    async with aiomqtt.Client(config.host, config.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe(topic, qos=1)
        task = asyncio.create_task(listen(client))
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def operator(config: FleetConfig, key: Ed25519PrivateKey = KEY, name: str = "tool") -> FleetClient:
    return FleetClient(config, "lab", key="ops", signer=key.sign, name=name)


def statuses(heard: list[aiomqtt.Message]) -> list[tuple[str, int]]:
    found = [msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.status]
    return [(status["state"], status["session"]) for status in found]


async def publish(
    config: FleetConfig, command: Command, *, times: int = 1, retain: bool = False, topic: str = ""
) -> None:
    properties = transport.publish_properties(response=TOPICS.response("raw"), correlation=b"corr")
    async with aiomqtt.Client(config.host, config.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        for _ in range(times):
            await client.publish(
                topic or TOPICS.command(command.op),
                encode(command),
                qos=1,
                retain=retain,
                properties=properties,
            )


def replies(heard: list[aiomqtt.Message]) -> list[Reply]:
    return [msgspec.json.decode(m.payload, type=Reply) for m in heard if "/resp/" in str(m.topic)]


# --- presence and reports ----------------------------------------------------------------------


async def test_birth_state_telemetry_and_goodbye(config: FleetConfig, facade: MemoryFacade) -> None:
    async with listening(config, f"{TOPICS.root}/#") as heard:
        agent = FleetAgent(config, "lab", "koch", facade, software="1.2.3", lease_holder=lambda: "anna")
        async with running(agent):
            await eventually(lambda: len([m for m in heard if str(m.topic) == TOPICS.summary]) >= 2)
            facade.mode = "policy"
            states = lambda: [msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.state]  # noqa: E731
            await eventually(lambda: states()[-1]["mode"] == "policy")
            assert len(states()) == 2, "a snapshot on change, not on every poll"
            await agent.event("intervention", by="anna")
            await eventually(lambda: any(str(m.topic) == TOPICS.event for m in heard))
        await eventually(lambda: ("OFFLINE", 1) in statuses(heard))
    assert statuses(heard) == [("ONLINE", 1), ("OFFLINE", 1)]
    assert states()[0]["lease_holder"] == "anna"
    summary = next(msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.summary)
    assert summary["position"][0] == -1.0
    assert summary["loop"]["period_ms_p50"] == 33.3
    async with listening(config, f"{TOPICS.root}/#") as late:
        await eventually(lambda: len(late) >= 3)
        await asyncio.sleep(0.1)
    assert {str(m.topic) for m in late} == {TOPICS.status, TOPICS.factsheet, TOPICS.state}
    assert all(m.retain for m in late)
    factsheet = next(msgspec.json.decode(m.payload) for m in late if str(m.topic) == TOPICS.factsheet)
    assert factsheet["operations"]["set_policy"] == "deploy"
    assert len(factsheet["joints"]) == 6


class RobotProcess:
    """fleet_robot.py as a child."""

    def __init__(self, config: FleetConfig, directory: Path, hang: str = "") -> None:
        settings = directory / "fleet.json"
        settings.write_text(config.model_dump_json())
        self.effects = directory / "effects"
        arguments = [sys.executable, str(ROBOT), str(settings), str(self.effects)]
        if hang:
            arguments.append(hang)
        self.process = subprocess.Popen(arguments, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROBOT.parent}"})

    def lines(self) -> list[str]:
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


async def test_a_killed_robot_is_lost_under_its_own_session(config: FleetConfig, tmp_path: Path) -> None:
    seen: list[Presence] = []

    async def watch() -> None:
        async for presence in watch_presence(config, "lab"):
            seen.append(presence)

    watcher = asyncio.create_task(watch())
    for session in (1, 2):
        robot = RobotProcess(config, tmp_path)
        try:
            await eventually(
                lambda n=session: ("ONLINE", n) in [(p.status.state, p.status.session) for p in seen]
            )
        finally:
            robot.kill()
        await eventually(lambda n=session: ("LOST", n) in [(p.status.state, p.status.session) for p in seen])
    watcher.cancel()
    async with listening(config, TOPICS.status) as late:
        await eventually(lambda: late)
    assert statuses(late) == [("LOST", 2)]
    assert late[0].retain


async def test_a_late_will_of_an_earlier_session_is_not_believed(config: FleetConfig) -> None:
    seen: list[Presence] = []

    async def watch() -> None:
        async for presence in watch_presence(config, "lab"):
            seen.append(presence)

    async with aiomqtt.Client(config.host, config.port) as client:
        for state, session in (("ONLINE", 4), ("ONLINE", 5)):
            await client.publish(
                TOPICS.status, encode({"state": state, "session": session}), qos=1, retain=True
            )
        watcher = asyncio.create_task(watch())
        await eventually(lambda: seen)
        for state, session in (("LOST", 4), ("LOST", 5)):
            await client.publish(
                TOPICS.status, encode({"state": state, "session": session}), qos=1, retain=True
            )
        await eventually(lambda: len(seen) == 2)
    watcher.cancel()
    assert [(p.status.state, p.status.session) for p in seen] == [("ONLINE", 5), ("LOST", 5)]


# --- commands ----------------------------------------------------------------------------------


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


# --- kills and restarts ------------------------------------------------------------------------


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


# --- other loops, encryption -------------------------------------------------------------------


def test_the_agent_runs_on_uvloop(config: FleetConfig, facade: MemoryFacade, broker: Broker) -> None:
    async def session() -> str:
        agent = FleetAgent(config, "lab", "koch", facade)
        async with running(agent), operator(config) as fleet:
            await fleet.send("koch", "ping")
            await asyncio.to_thread(broker.stop)
            await eventually(lambda: not agent.connected)
            await asyncio.to_thread(broker.start)
            await eventually(lambda: agent.connected)
        async with running(FleetAgent(config, "lab", "koch", facade)), operator(config) as fleet:
            return (await fleet.send("koch", "hold")).state

    assert uvloop.run(session()) == "SUCCEEDED"
    assert facade.names() == ["hold"]


async def test_mutual_tls_to_the_broker(config: FleetConfig, facade: MemoryFacade, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "tls").mkdir()
    broker = Broker(tmp_path / "tls", authority.issue("broker"))
    await asyncio.to_thread(broker.start)
    secure = FleetConfig.model_validate(
        config.model_dump() | {"port": broker.port, "plaintext": False, "tls": authority.issue("koch")}
    )
    foreign = Authority(tmp_path, "foreign").issue("eve", trust=authority.ca)
    try:
        async with running(FleetAgent(secure, "lab", "koch", facade)), operator(secure) as fleet:
            assert (await fleet.send("koch", "ping")).state == "SUCCEEDED"
        for wrong in (
            secure.model_copy(update={"tls": foreign}),
            secure.model_copy(update={"tls": secure.tls.model_copy(update={"ca": foreign.certificate})}),
        ):
            with pytest.raises(FleetError, match="no MQTT broker"):
                async with operator(wrong):
                    pass
    finally:
        await asyncio.to_thread(broker.stop)


async def test_a_cancellation_that_a_publish_swallows_still_ends_it(
    config: FleetConfig, facade: MemoryFacade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``asyncio.wait_for`` before Python 3.12 does that when the answer arrives at the same moment."""
    publishing = asyncio.Event()
    publish = transport.AckingClient.publish

    async def swallowing(self: transport.AckingClient, topic: str, *args: object, **options: object) -> None:
        await publish(self, topic, *args, **options)
        if topic == TOPICS.state:
            publishing.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    monkeypatch.setattr(transport.AckingClient, "publish", swallowing)
    task = asyncio.create_task(FleetAgent(config, "lab", "koch", facade).run())
    await asyncio.wait_for(publishing.wait(), 20)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=20)
    assert done
    assert task.cancelled()
