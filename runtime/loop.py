"""The 30 Hz loop of one arm: wait, observe, act, send, record. Read `_tick` top to bottom.

It runs in the uvloop process beside recording and the remote doors. Nothing here waits for a
policy server, a disk or a network: chunks arrive behind the tick, episodes are written by the
recorder's own thread, and a tick that comes late is counted and the missed ones are skipped.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from episodes.errors import StoreError
from hal.types import JOINTS, Frame, Vector
from runtime.bus_handle import BusSample
from runtime.bus_records import Fault
from runtime.control import Controller, TickResult
from runtime.frame_tail import FrameTail
from runtime.leader_stats import LeaderStats
from runtime.loop_parts import Arm, ChunkSource, FrameSource
from runtime.loop_stats import LoopStats, TickLog
from runtime.nouns import Flag, Observation, Source, Waypoint
from runtime.outcomes import Drive
from runtime.realtime import IdleCollector
from runtime.recorder import EpisodeRecorder, bus_row
from runtime.remote.facade import LoopFigures
from runtime.servo import HoldCause, Phase
from runtime.supervisor import Event, State, transition
from runtime.timing import TickTimer, Wake

log = logging.getLogger(__name__)

RECENT_FLAGS = 32
TELEOP_FRESH_NS = 200_000_000
FORGET_TICKS = 18_000  # ten minutes: without episodes the monitors' memory would grow for ever


class ControlLoop:
    """One arm's loop, its supervisor state, and what it last saw."""

    def __init__(
        self,
        controller: Controller,
        follower: Arm,
        leader: Arm | None,
        cameras: Mapping[str, FrameSource],
        policy: ChunkSource,
        recorder: EpisodeRecorder,
        *,
        bus_silence_ns: int,
    ) -> None:
        """``bus_silence_ns``: how long the bus process may say nothing; as long as the motors wait for it."""
        self._controller = controller
        self._bus_silence_ns = bus_silence_ns
        self._follower = follower
        self._leader = leader
        self._cameras = dict(cameras)
        self._tail = FrameTail(self._cameras)
        self._pictures: Mapping[str, list[Frame]] = {}
        self._policy = policy
        self._recorder = recorder
        self.stats = LoopStats()
        self.log: TickLog | None = None
        self.collector: IdleCollector | None = None
        self.leading = LeaderStats()
        self.state = State.OFF
        self.reason = "started"
        self.ticks = 0
        self.policy_version = ""
        self.flags: deque[Flag] = deque(maxlen=RECENT_FLAGS)
        self.sample: BusSample | None = None
        self.recorder_error = ""
        self.on_version: Callable[[str], None] | None = None
        self.drive = Drive()
        self._bus_index = -1
        self._patience_ns = 0
        self._remote_goal: tuple[Vector, int] | None = None
        self._led: Waypoint | None = None

    async def run(self) -> None:
        """Tick until cancelled."""
        with TickTimer(self._controller.config.period_ns) as timer:
            while True:
                wake = await timer.next()
                self._tick(wake)
                end_ns = time.monotonic_ns()
                collected_ns = 0
                if self.collector is not None:
                    collected_ns = self.collector.between(end_ns, timer.pacer.next_ns)
                if self.log is not None:
                    self.log.end(self.ticks - 1, wake, timer.cause, end_ns, collected_ns)

    def _tick(self, wake: Wake) -> None:
        """One control tick."""
        self.stats.tick(wake.deadline_ns + wake.late_ns, wake.late_ns, wake.skipped)
        observation = self._observe(wake)
        if observation is not None:
            source, target = self._source()
            self._exchange_chunks(observation, source)
            result = self._controller.tick(
                observation, source, target=target, bus_lost=self.sample.lost if self.sample else 0
            )
            if result.waypoint is not None:
                self._command(result.waypoint)
            samples = self._samples()
            if self.log is not None:
                self.log.decided(observation, result.waypoint, self._controller.player.chunk)
            self._note(result)
            self._record(observation, result, wake, samples)
        self.ticks += 1

    # --- what is asked of the loop from outside --------------------------------------------------

    def handle(self, event: Event, reason: str = "") -> State:
        """Apply a supervisor event now; returns the state it led to."""
        before, self.state = self.state, transition(self.state, event)
        if self.state is not before:
            self._take_from_leader()
            self.reason = reason or event.value
            self._remote_goal = None
            if self._recorder.running is None:
                self._controller.begin()
            else:
                self._controller.player.reset()  # the episode's flags stay
                self._note_intervention(before)
            log.info("state %s -> %s reason=%s", before.value, self.state.value, self.reason)
        return self.state

    def _note_intervention(self, before: State) -> None:
        """A person who drives during a policy's episode has taken over; leaving teleop hands back."""
        if self._recorder.kind != "rollout":
            return
        now_ns = time.monotonic_ns()
        try:
            if self.state is State.TELEOP:
                self.drive.taken_over = True
                self._recorder.take_over(now_ns, "operator")
            elif before is State.TELEOP:
                self._recorder.hand_back(now_ns)
        except StoreError as error:
            self.recording_failed(error)

    def remote_goal(self, position: Vector, age_ns: int) -> None:
        """A joint goal from a remote operator, rad (6,), ``age_ns`` old; counts for 200 ms."""
        self._remote_goal = (position, time.monotonic_ns() - age_ns)

    def blind(self, cameras: Collection[str] | None = None) -> list[str]:
        """Which of ``cameras`` (default: the robot's) give no fresh picture, or are not there."""
        handles = self._cameras
        return [
            name
            for name in (handles if cameras is None else cameras)
            if name not in handles or handles[name].latest() is None
        ]

    def stamps(self) -> dict[str, str]:
        """Whose word the cameras' capture times are: ``driver`` or, where it has none, ``arrival``."""
        frames = {name: camera.latest() for name, camera in self._cameras.items()}
        return {
            name: "driver" if frame.driver_stamp else "arrival"
            for name, frame in frames.items()
            if frame is not None
        }

    def begin_episode(self) -> None:
        """Monitors start afresh with the episode that is about to be recorded; the motion goes on."""
        self._controller.bank.reset()
        self._tail.restart()
        self.drive = Drive()
        self._bus_index = -1 if self.sample is None else self.sample.index

    def finish_episode(self) -> list[Flag]:
        """The episode's flags with their final spans."""
        return self._controller.bank.finish()

    def recording_failed(self, error: StoreError) -> None:
        """The disk's trouble is not the arm's: say so, and go on without recording."""
        self.recorder_error = str(error)
        log.error("recording stopped: %s", error)
        self._recorder.abandon()

    def recalibrate(self, thresholds: Mapping[str, Any] | None) -> None:
        """Use the monitor thresholds of the bundle that now serves."""
        self._controller.bank.recalibrate(thresholds)

    def figures(self) -> LoopFigures:
        """What a person asks for: the loop's pace, the bus's counts, how the leader is followed."""
        cycles, lost = (self.sample.cycles, self.sample.lost) if self.sample else (0, 0)
        return replace(
            self.stats.figures(cycles, lost),
            leader_hz=self.leading.hz,
            leader_latency_ms_p50=self.leading.latency_ms.percentile(50),
            leader_latency_ms_p99=self.leading.latency_ms.percentile(99),
        )

    # --- the parts of a tick ---------------------------------------------------------------------

    def _observe(self, wake: Wake) -> Observation | None:
        """The newest sample of everything; None (and a fault) when the arm's is missing or old."""
        self.sample = sample = self._follower.latest()
        now_ns = wake.deadline_ns + wake.late_ns
        # What kept this tick may have kept the others: nobody is judged by time in which we stood still.
        self._patience_ns = wake.late_ns + wake.skipped * self._controller.config.period_ns
        if sample is None:
            return None
        self._judge(sample, now_ns)
        leader = None if self._leader is None else self._leader.latest()
        pictures = self._tail.look(self._recorder.listening)
        self._pictures = pictures.to_record
        return Observation(
            tick=self.ticks,
            t_ns=now_ns,
            joints=sample.joints,
            goal=sample.goal,
            frames=pictures.newest,
            leader=None if leader is None else leader.joints,
        )

    def _judge(self, sample: BusSample, now_ns: int) -> None:
        """Turn what the bus process reports into supervisor events."""
        if sample.estopped:
            self.handle(Event.ESTOP, "e-stop")
        elif sample.fault is not Fault.NONE:
            fault = Event.BUS_FAULT if sample.fault is Fault.PORT else Event.MOTOR_FAULT
            self.handle(fault, sample.message)
        elif self.state.energised and now_ns - sample.joints.t_ns > self._bus_silence_ns + self._patience_ns:
            self.handle(Event.BUS_FAULT, "no fresh sample from the bus process")
        elif self.state.energised and sample.cause is HoldCause.CONTACT:
            joint = JOINTS[sample.contact_joint]
            self.handle(Event.CONTACT, f"contact at {joint}, residual {sample.residual:.1f}")
        elif self.state.energised and sample.phase is Phase.RELEASE:
            self.handle(Event.RELEASED, "lowered and released")

    def _source(self) -> tuple[Source, Vector | None]:
        """Who moves the arm this tick, and to where when it is not the policy."""
        if self.state is State.POLICY:
            return Source.POLICY, None
        if self.state is not State.TELEOP:
            return Source.NONE, None
        person = Source.INTERVENTION if self._recorder.kind == "rollout" else Source.TELEOP
        return person, self._person()

    def _person(self) -> Vector | None:
        """Where the remote operator or the leader arm points; silence of either ends in a hold."""
        now_ns = time.monotonic_ns()
        if self._remote_goal is not None:
            position, at_ns = self._remote_goal
            return position if now_ns - at_ns <= TELEOP_FRESH_NS else None
        if self._leader is None:
            return None
        leader = self._leader.latest()
        if (
            leader is not None
            and leader.fault is Fault.NONE
            and now_ns - leader.joints.t_ns <= TELEOP_FRESH_NS + self._patience_ns
        ):
            return leader.joints.position
        why = leader.message if leader is not None and leader.message else "no fresh sample"
        # The leader may come back anywhere: a person resumes, and the motion ramps up.
        self.handle(Event.COMMAND_STALE, f"the leader arm does not answer: {why}")
        return None

    def _command(self, waypoint: Waypoint) -> None:
        """Send it; where the leader arm drives it is only the word that it may, see ``leader_link``."""
        if self.state is State.TELEOP and self._remote_goal is None:
            if self._led is None:
                self.leading.begin()
            waypoint = self._led = replace(waypoint, leader=True)
        else:
            self._led = None
        self._follower.command(waypoint)

    def _take_from_leader(self) -> None:
        """Take the word back that the leader arm may drive; its own expiry would do so a little later."""
        if self._led is not None:
            self._follower.command(replace(self._led, seq=self._led.seq + 1, expires_ns=0))
            self._led = None

    def _exchange_chunks(self, observation: Observation, source: Source) -> None:
        chunk = self._policy.take()
        if source is not Source.POLICY:
            return
        self._controller.expect(self._policy.round_trip_s)
        if chunk is not None:
            self._controller.offer(chunk, observation.tick)
            self._note_version(chunk.version)
            self.drive.answered(chunk.version)
            self.stats.inference_ms.add((observation.t_ns - chunk.obs_t_ns) / 1e6)
        if self._controller.wants_chunk(observation.tick):
            self._policy.begin(observation)

    def _note_version(self, version: str) -> None:
        """Other weights answered: their own monitor thresholds must follow."""
        if version == self.policy_version:
            return
        self.policy_version = version
        if self.on_version is not None:
            self.on_version(version)

    def _note(self, result: TickResult) -> None:
        for flag in result.flags:
            self.flags.append(flag)
            self.drive.kinds.add(flag.kind)
            log.info("flag kind=%s score=%.2f", flag.kind, flag.score)
        controller = self._controller
        if controller.config.hold_on_doubt and self.state is State.POLICY and controller.bank.ask_help:
            self.handle(Event.HOLD, "the policy is unsure in an unfamiliar place; a person is needed")

    def remark(self, kind: str, t_ns: int, evidence: dict[str, Any]) -> None:
        """Flag something that no monitor sees, at one instant: here, and in the episode that is running."""
        flag = Flag(kind, t_ns, t_ns, 1.0, evidence)
        self.flags.append(flag)
        log.info("flag kind=%s", kind)
        if self._recorder.running is None:
            return
        try:
            self._recorder.flag(flag)
        except StoreError as error:
            self.recording_failed(error)

    def _record(
        self, observation: Observation, result: TickResult, wake: Wake, samples: list[BusSample]
    ) -> None:
        """Hand the tick to the recorder, whose trouble with the disk is not the arm's."""
        if self._recorder.running is None and self.ticks % FORGET_TICKS == 0:
            self._controller.bank.reset()
        if not self._recorder.listening:
            return
        try:
            late_ms = wake.late_ns / 1e6
            self._recorder.tick(observation, result.asked, result.source, late_ms, self._pictures)
            self._recorder.bus([bus_row(sample.joints, sample.goal) for sample in samples])
        except StoreError as error:
            self.recording_failed(error)

    def _samples(self) -> list[BusSample]:
        """Every bus cycle since the last tick, while somebody wants to know."""
        samples: list[BusSample] = []
        if self._led is not None or self._recorder.listening:
            samples = self._follower.since(self._bus_index)
        newest = samples[-1] if samples else self.sample
        if newest is not None:
            self._bus_index = newest.index
        if self._led is not None:
            self.leading.add(samples)
        return samples
