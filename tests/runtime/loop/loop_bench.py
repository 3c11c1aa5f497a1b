"""A control loop with fakes around it and a real store behind it."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.types import Frame, JointState
from runtime.bus_handle import BusSample
from runtime.bus_records import BusCounters, Fault
from runtime.control import ControlConfig, Controller
from runtime.loop import ControlLoop
from runtime.monitors import MonitorBank, MonitorConfig
from runtime.nouns import ActionChunk, Observation, Waypoint
from runtime.recorder import EpisodeRecorder
from runtime.servo import HoldCause, Phase
from runtime.supervisor import Event
from runtime.timing import Wake

PERIOD_NS = ControlConfig().period_ns
BUS_SILENCE_NS = 120_000_000


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
            controller,
            self.arm,
            self.leader,
            {"front": self.camera},
            self.policy,
            self.recorder,
            bus_silence_ns=BUS_SILENCE_NS,
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
