"""The loop's decisions, tick by tick: who drives, what is recorded, what a failing part does to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from episodes.errors import RecordingError
from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.types import Frame, JointState
from runtime.bus_handle import BusSample
from runtime.bus_records import BusCounters, Fault
from runtime.control import ControlConfig, Controller
from runtime.loop import ControlLoop
from runtime.monitors import MonitorBank, MonitorConfig
from runtime.nouns import ActionChunk, Observation, Source, Waypoint
from runtime.recorder import EpisodeRecorder
from runtime.servo import HoldCause, Phase
from runtime.supervisor import Event, State
from runtime.timing import Wake

PERIOD_NS = ControlConfig().period_ns


class FakeArm:
    """An arm that is where it is put, and remembers its waypoints."""

    def __init__(self) -> None:
        self.waypoints: list[Waypoint] = []
        self.sample = make_sample()

    def latest(self) -> BusSample | None:
        return self.sample

    def since(self, index: int) -> list[BusSample]:
        return [self.sample] if self.sample.index > index else []

    def command(self, waypoint: Waypoint) -> None:
        self.waypoints.append(waypoint)

    def cycle(self, **change: object) -> None:
        """A fresh sample, ``change`` on top; ``position`` is a joint's angle."""
        position = change.pop("position", None)
        joints = self.sample.joints
        if position is not None:
            joints = dataclasses.replace(joints, position=np.full(6, position))
        joints = dataclasses.replace(joints, t_ns=time.monotonic_ns(), seq=joints.seq + 1)
        self.sample = dataclasses.replace(
            self.sample, index=self.sample.index + 1, joints=joints, goal=joints.position.copy(), **change
        )


class FakePolicy:
    """Answers each observation in the next tick."""

    round_trip_s = 0.03

    def __init__(self) -> None:
        self.asked: list[Observation] = []
        self.chunk: ActionChunk | None = None
        self.version = "aaaaaaaaaaaa"

    def begin(self, observation: Observation) -> bool:
        self.asked.append(observation)
        actions = np.full((50, 6), 0.5, dtype=np.float32)
        self.chunk = ActionChunk(actions, observation.tick, observation.t_ns, self.version, 1, 1.0)
        return True

    def take(self) -> ActionChunk | None:
        chunk, self.chunk = self.chunk, None
        return chunk


class FakeCamera:
    """Publishes ``rate`` pictures before each look, into a ring of eight; each is filled with its number."""

    held = 8

    def __init__(self) -> None:
        self.published: list[Frame] = []
        self.rate = 1

    def newest(self) -> tuple[int, Frame] | None:
        for _ in range(self.rate):
            seq = 100 + len(self.published)
            image = np.full((8, 8, 3), seq % 256, np.uint8)
            self.published.append(Frame("front", seq, time.monotonic_ns(), image, False))
        return len(self.published) - 1, self.published[-1]

    def latest(self) -> Frame | None:
        found = self.newest()
        return None if found is None else found[1]

    def read(self, index: int) -> Frame | None:
        return self.published[index] if len(self.published) - self.held <= index else None

    def fresh(self, frame: Frame) -> bool:
        return True


def no_losses(timeouts: int = 0) -> BusCounters:
    rows = np.zeros((6, 6), np.int64)
    rows[2, 0] = timeouts
    return BusCounters(*rows)


def make_sample() -> BusSample:
    zeros, none = np.zeros(6), np.zeros(6, np.uint8)
    joints = JointState(
        0, time.monotonic_ns(), zeros, zeros, zeros, zeros, zeros, none, none > 0, none.astype(np.int64)
    )
    return BusSample(
        index=0,
        joints=joints,
        goal=zeros.copy(),
        clamped=none,
        phase=Phase.FOLLOW,
        cause=HoldCause.NONE,
        torque=True,
        estopped=False,
        fault=Fault.NONE,
        contact_joint=-1,
        residual=0.0,
        command_seq=0,
        late_ns=0,
        exec_ns=0,
        cycles=0,
        overruns=0,
        counters=no_losses(),
        dropped_commands=0,
        message="",
    )


class Bench:
    """A loop with fakes around it and a real store behind it."""

    def __init__(self, store: EpisodeStore) -> None:
        self.store = store
        self.arm, self.leader, self.policy = FakeArm(), FakeArm(), FakePolicy()
        camera = CameraSpec(name="front", height=8, width=8)
        self.recorder = EpisodeRecorder(store, [camera], 30.0, {}, bus_streams=True)
        controller = Controller(ControlConfig(), MonitorBank(MonitorConfig(), None, 180))
        self.camera = FakeCamera()
        self.loop = ControlLoop(
            controller, self.arm, self.leader, {"front": self.camera}, self.policy, self.recorder
        )

    def tick(self, count: int = 1, *, leader_alive: bool = True, **change: object) -> None:
        for _ in range(count):
            self.arm.cycle(**change)
            if leader_alive:
                self.leader.cycle()
            self.loop._tick(Wake(time.monotonic_ns(), 0, 0))

    def go(self, *events: Event) -> None:
        for event in events:
            self.loop.handle(event)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    with EpisodeStore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def bench(store: EpisodeStore) -> Bench:
    return Bench(store)


def test_nothing_is_commanded_unless_somebody_drives(bench: Bench) -> None:
    bench.tick(3)
    bench.go(Event.ENABLE)
    bench.tick(3)
    assert bench.arm.waypoints == []
    assert bench.policy.asked == []


def test_the_leader_is_followed_within_a_tick_and_its_word_expires(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.leader.cycle(position=0.25)
    bench.tick()
    (waypoint,) = bench.arm.waypoints
    np.testing.assert_array_equal(waypoint.position, np.full(6, 0.25))
    assert waypoint.source is Source.TELEOP
    life_ms = (waypoint.expires_ns - waypoint.target_ns) / 1e6
    assert life_ms == pytest.approx(ControlConfig().expire_ms)


def test_a_leader_that_falls_silent_means_hold_until_a_person_resumes(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    old = dataclasses.replace(bench.leader.sample.joints, t_ns=time.monotonic_ns() - 300_000_000)
    bench.leader.sample = dataclasses.replace(bench.leader.sample, joints=old)
    bench.tick(leader_alive=False)
    assert bench.loop.state is State.HOLD
    assert "leader" in bench.loop.reason
    bench.tick(3)
    word, taken_back = bench.arm.waypoints
    assert word.leader
    assert (taken_back.leader, taken_back.expires_ns) == (True, 0)


def test_a_take_over_lets_the_leader_drive_directly_and_the_hand_back_ends_it(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.POLICY)
    bench.recorder.start("task", "rollout")
    bench.tick(3)
    assert not any(waypoint.leader for waypoint in bench.arm.waypoints)
    bench.go(Event.TELEOP)
    bench.tick(2, leader_latency_ns=5_000_000, leader_updates=8)
    word = bench.arm.waypoints[-1]
    assert (word.leader, word.source) == (True, Source.INTERVENTION)
    assert bench.loop.figures().leader_latency_ms_p50 == pytest.approx(5.0)
    bench.go(Event.POLICY)
    taken_back = bench.arm.waypoints[-1]
    assert (taken_back.leader, taken_back.expires_ns) == (True, 0), "before the policy has said anything"
    bench.tick(2, leader_latency_ns=-1)
    assert not bench.arm.waypoints[-1].leader


def test_a_remote_operator_takes_the_word_from_the_leader(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    assert bench.arm.waypoints[-1].leader
    bench.loop.remote_goal(np.full(6, -0.1), 0)
    bench.tick()
    assert not bench.arm.waypoints[-1].leader


def test_a_leader_in_fault_is_not_followed_however_fresh(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.leader.cycle(fault=Fault.MOTOR, message="motor 3 is silent")
    bench.tick()
    assert bench.arm.waypoints == []
    assert "motor 3 is silent" in bench.loop.reason


def test_a_remote_goal_outranks_the_leader_and_goes_stale(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.loop.remote_goal(np.full(6, -0.1), 0)
    bench.tick()
    np.testing.assert_array_equal(bench.arm.waypoints[-1].position, np.full(6, -0.1))
    bench.loop.remote_goal(np.full(6, -0.2), 250_000_000)
    bench.tick(2)
    assert len(bench.arm.waypoints) == 1, "an old goal moves nothing, and the leader does not take over"


def test_a_policys_chunk_is_played_and_asked_for_again_in_time(bench: Bench) -> None:
    versions: list[str] = []
    bench.loop.on_version = versions.append
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick(40)
    assert len(bench.arm.waypoints) >= 38
    assert {w.source for w in bench.arm.waypoints} == {Source.POLICY}
    asked = [observation.tick for observation in bench.policy.asked]
    assert 2 <= len(asked) <= 4
    assert versions == ["aaaaaaaaaaaa"]


def test_a_chunk_asked_for_before_a_stop_moves_nothing_afterwards(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick()
    bench.go(Event.HOLD, Event.RESUME)
    bench.tick(2)
    assert bench.arm.waypoints == []
    bench.go(Event.POLICY)
    bench.policy.asked.clear()
    bench.tick()
    assert len(bench.policy.asked) == 1, "a new plan from where the arm is now"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"estopped": True}, State.ESTOP),
        ({"fault": Fault.PORT, "message": "unplugged"}, State.FAULT),
        ({"fault": Fault.HARDWARE, "message": "too hot"}, State.FAULT),
        ({"cause": HoldCause.CONTACT, "contact_joint": 2}, State.HOLD),
        ({"phase": Phase.RELEASE}, State.OFF),
    ],
)
def test_what_the_bus_process_reports_stops_the_loop(
    bench: Bench, change: dict[str, object], state: State
) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    bench.tick(**change)
    assert bench.loop.state is state
    commanded = len(bench.arm.waypoints)
    bench.tick(3, **change)
    assert len(bench.arm.waypoints) == commanded


def test_a_bus_process_that_stalls_is_a_fault(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    old = dataclasses.replace(bench.arm.sample.joints, t_ns=time.monotonic_ns() - 200_000_000)
    bench.arm.sample = dataclasses.replace(bench.arm.sample, joints=old)
    bench.loop._tick(Wake(time.monotonic_ns(), 0, 0))
    assert bench.loop.state is State.FAULT


def test_the_bus_process_is_not_blamed_for_what_held_up_the_loop_as_well(bench: Bench) -> None:
    """Nor the leader's: when the machine stood still both are as old as the tick is late, for one tick."""
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    stood_ns = 400_000_000
    for arm in (bench.arm, bench.leader):
        arm.sample = dataclasses.replace(
            arm.sample, joints=dataclasses.replace(arm.sample.joints, t_ns=time.monotonic_ns() - stood_ns)
        )
    bench.loop._tick(Wake(time.monotonic_ns(), 0, 12))  # twelve periods of 33 ms were skipped
    assert bench.loop.state is State.TELEOP
    bench.loop._tick(Wake(time.monotonic_ns(), 0, 0))
    assert bench.loop.state is State.FAULT, "the loop goes on, the bus process does not"


def test_an_interventions_ticks_are_the_persons(bench: Bench, store: EpisodeStore) -> None:
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick(2)
    episode = bench.recorder.start("task", "rollout")
    bench.loop.begin_episode()
    bench.tick(4)
    bench.go(Event.TELEOP)
    bench.tick(5)
    bench.go(Event.POLICY)
    bench.tick(4)
    ref = bench.recorder.end("success", "", np.zeros(6))
    assert ref is not None
    ref.wait(20.0)
    read = store.read(episode)
    source = read.streams["tick.source"].values.tolist()
    assert len(source) == 13
    assert source[4:9] == [int(Source.INTERVENTION)] * 5
    assert int(Source.INTERVENTION) not in source[:4] + source[9:]
    (span,) = read.interventions
    t_ns = read.streams["tick.source"].t_ns
    assert t_ns[3] < span.start_ns <= t_ns[4]
    assert t_ns[8] <= span.end_ns < t_ns[9]


def test_a_demonstration_is_no_intervention(bench: Bench, store: EpisodeStore) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    episode = bench.recorder.start("task", "demo")
    bench.tick(4)
    ref = bench.recorder.end("success", "", np.zeros(6))
    assert ref is not None
    ref.wait(20.0)
    read = store.read(episode)
    assert set(read.streams["tick.source"].values.tolist()) == {int(Source.TELEOP)}
    assert len(read.interventions) == 0


def test_the_recorded_action_is_the_goal_let_through_in_answer_to_what_was_asked(
    bench: Bench, store: EpisodeStore
) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    episode = bench.recorder.start("task", "demo")
    bench.leader.cycle(position=0.9)
    bench.tick(position=0.1)
    bench.tick(position=0.2)  # the fake's goal is where it is: what the guard let through is 0.2
    ref = bench.recorder.end("success", "", np.full(6, 0.3))
    assert ref is not None
    ref.wait(20.0)
    streams = store.read(episode).streams
    np.testing.assert_allclose(streams["observation.state"].values[:, 0], [0.1, 0.2])
    np.testing.assert_allclose(streams["action"].values[:, 0], [0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(streams["action.asked"].values[:, 0], [0.9, 0.9], rtol=1e-6)


def test_every_picture_between_two_ticks_is_recorded_once_and_in_order(
    bench: Bench, store: EpisodeStore
) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick(3)
    episode = bench.recorder.start("task", "demo")
    bench.loop.begin_episode()
    for rate in (1, 2, 0, 3, 1, 8, 0, 0, 1, 0, 12, 0, 0, 1):
        bench.camera.rate = rate
        bench.tick()
    ref = bench.recorder.end("success", "", np.zeros(6))
    assert ref is not None
    ref.wait(20.0)
    read = store.read(episode)
    published = {frame.seq: frame.t_ns for frame in bench.camera.published}
    frames = read.frames("front")
    # A burst of 12 is more than the ring holds: its first four are lost to everybody.
    assert frames.seq.tolist() == [*range(103, 119), *range(123, 132)]
    assert frames.t_ns.tolist() == [published[seq] for seq in frames.seq.tolist()]
    assert read.meta.cameras["front"].missing == 4


def test_a_policy_looks_at_the_newest_picture_only(bench: Bench) -> None:
    bench.camera.rate = 5
    bench.go(Event.ENABLE, Event.POLICY)
    bench.recorder.start("task", "rollout")
    bench.loop.begin_episode()
    bench.tick()
    assert bench.policy.asked[0].frames["front"] is bench.camera.published[-1]
    bench.recorder.discard()


def test_bus_samples_from_before_the_episode_stay_out_of_it(bench: Bench, store: EpisodeStore) -> None:
    bench.tick(3)
    before_ns = time.monotonic_ns()
    episode = bench.recorder.start("task", "demo")
    bench.loop.begin_episode()
    bench.tick(3)
    ref = bench.recorder.end("success", "", np.zeros(6))
    assert ref is not None
    ref.wait(20.0)
    bus = store.read(episode).streams["bus.position"]
    assert len(bus.t_ns) == 3
    assert bus.t_ns.min() > before_ns


def test_a_full_disk_ends_the_recording_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.recorder.start("task", "demo")
    bench.tick()

    def no_space(*_: object) -> None:
        raise RecordingError("no space left on /store", "free some")

    monkeypatch.setattr(bench.recorder, "tick", no_space)
    bench.tick(5)
    assert bench.loop.state is State.TELEOP
    assert len(bench.arm.waypoints) == 6
    assert "no space left" in bench.loop.recorder_error
    assert bench.recorder.running is None


def test_flags_outlive_a_take_over(bench: Bench) -> None:
    """A change of who drives is not a new episode to the monitors."""
    bench.go(Event.ENABLE, Event.POLICY)
    bench.recorder.start("task", "rollout")
    bench.loop.begin_episode()
    for lost in range(10):
        bench.tick(counters=no_losses(10 * lost))
    bench.go(Event.TELEOP)
    bench.tick(3)
    assert "lost_replies" in {flag.kind for flag in bench.loop.finish_episode()}
    bench.recorder.discard()


@pytest.mark.parametrize("hold_on_doubt", [False, True])
def test_an_unsure_policy_waits_for_a_person_where_that_is_configured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hold_on_doubt: bool
) -> None:
    bench.loop._controller.config = ControlConfig(hold_on_doubt=hold_on_doubt)
    monkeypatch.setattr(MonitorBank, "ask_help", property(lambda _: True))
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick(3)
    assert bench.loop.state is (State.HOLD if hold_on_doubt else State.POLICY)
