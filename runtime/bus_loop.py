"""One cycle of an arm's bus: read, look at the e-stop, step the servo core, write the goals, publish.

``BusLoop.cycle`` reads top to bottom. In a latched fault it goes on reading and publishing what it
can, but writes no goal.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from hal.errors import HalError
from hal.types import JointState
from runtime.bus_link import ArmLink
from runtime.bus_records import (
    COMMAND,
    MESSAGE_BYTES,
    REPLY,
    REQUEST,
    STATE,
    BusFiles,
    BusWords,
    Fault,
    Op,
    write_joints,
)
from runtime.errors import ServoError
from runtime.leader_link import SEQ_ROOM, LeaderLink
from runtime.nouns import Source, Waypoint
from runtime.ring import RingReader, RingWriter
from runtime.servo import Phase, ServoCore, ServoStep, Verdict
from runtime.streams import NS
from runtime.timing import Pacer, Wake

log = logging.getLogger(__name__)

_FAULT_PUBLISH_NS = NS // 20


class BusLoop:
    """The bus process without its process: link, servo core (None: read only) and shared memory."""

    def __init__(
        self, link: ArmLink, core: ServoCore | None, files: BusFiles, leader: LeaderLink | None = None
    ) -> None:
        self._link = link
        self._core = core
        self._leader = leader
        self._state = RingWriter(files.state, STATE)
        self._commands = RingReader(files.command, COMMAND)
        self._requests = RingReader(files.request, REQUEST)
        self._replies = RingWriter(files.reply, REPLY)
        self._words = BusWords(files.words)
        self._seen_command = self._commands.head
        self._seen_request = self._requests.head
        # An e-stop raised while no process ran still counts.
        self._seen_estops = self._words.cleared
        self._published_ns = 0
        self._begun_ns = time.monotonic_ns()
        self._cycles = 0
        self._stopping = False
        self._state.record["contact_joint"] = -1
        self._state.record["command_seq"] = -1
        self._state.record["leader_latency_ns"] = -1

    @property
    def finished(self) -> bool:
        """Asked to stop, and the arm is released; or left to its watchdog: e-stopped, out of reach."""
        if not self._stopping:
            return False
        estopped = self._core is not None and self._core.estopped
        return not self._link.torque or estopped or not self._link.commandable

    def stop(self) -> None:
        """Let the arm down, then finish."""
        self._stopping = True
        if self._core is not None:
            self._core.lower()

    def prime(self) -> None:
        """Reach the arm once before pacing begins: opening it takes as long as many cycles."""
        self._link.read()

    def cycle(self, wake: Wake, pacer: Pacer) -> None:
        """One period."""
        begun_ns = time.monotonic_ns()
        self._words.beat(begun_ns)
        self._cycles += 1
        self._state.record["leader_latency_ns"] = -1
        pacer.stage("read")
        joints = self._link.read()
        if joints is not None:
            self._link.settle(self._core, begun_ns - self._begun_ns)
        self._begun_ns = begun_ns
        self._poll_estop()
        pacer.stage("request")
        self._poll_request()
        step = None
        if joints is not None and self._core is not None and self._link.commandable:
            pacer.stage("servo")
            self._watch_hardware(self._core, joints)
            self._poll_command(self._core)
            led = self._poll_leader(self._core)
            step = self._core.step(time.monotonic_ns(), joints)
            pacer.stage("write")
            self._apply(step)
            if step.torque:
                self._state.record["written_ns"] = time.monotonic_ns()
            if led is not None and step.phase is Phase.FOLLOW:
                self._state.record["leader_latency_ns"] = led.latency_ns(time.monotonic_ns())
                self._state.record["leader_updates"] = led.updates
        pacer.stage("publish")
        self._publish(wake, pacer, joints, step)

    def _apply(self, step: ServoStep) -> None:
        if step.torque:
            self._link.reach(lambda: self._link.port.write_goals(step.goal))
        elif self._link.torque:
            self._link.reach(self._link.release)

    def _watch_hardware(self, core: ServoCore, joints: JointState) -> None:
        """A motor shut itself down: the others hold until a person has looked."""
        if self._link.fault is Fault.NONE and joints.hardware_error.any():
            motors = self._link.shut_down_motors(joints)
            if motors:
                core.hold(latch=True)
                self._link.latch_hardware(motors)

    def _poll_estop(self) -> None:
        estops = self._words.estops
        if estops != self._seen_estops:
            self._seen_estops = estops
            self._let_go_of_leader()
            if self._core is not None:
                self._core.estop()
            log.warning("estop latched count=%d", estops)

    def _poll_command(self, core: ServoCore) -> None:
        if self._commands.head == self._seen_command:
            return
        newest = self._commands.latest()
        if newest is None:
            return
        index, record = newest
        self._seen_command = index + 1
        source = int(record["source"])
        waypoint = Waypoint(
            position=record["position"].copy(),
            target_ns=int(record["target_ns"]),
            expires_ns=int(record["expires_ns"]),
            source=Source(source) if source in Source._value2member_map_ else Source.NONE,
            seq=int(record["seq"]),
            leader=bool(record["leader"]),
        )
        self._state.record["command_seq"] = waypoint.seq
        if waypoint.leader and self._leader is not None and self._leader.follow(waypoint):
            return
        self._let_go_of_leader()
        core.command(replace(waypoint, seq=waypoint.seq * SEQ_ROOM))

    def _poll_leader(self, core: ServoCore) -> LeaderLink | None:
        """Turn the leader's newest sample into a waypoint; the link when the core accepted it."""
        if self._leader is None or not self._leader.following:
            return None
        waypoint = self._leader.waypoint(time.monotonic_ns())
        if waypoint is None or core.command(waypoint) is not Verdict.ACCEPTED:
            return None
        return self._leader

    def _let_go_of_leader(self) -> None:
        if self._leader is not None:
            self._leader.end()

    def _poll_request(self) -> None:
        if self._requests.head == self._seen_request:
            return
        # What was commanded before a request is not what its asker expects to happen after it.
        self._let_go_of_leader()
        self._seen_command = self._commands.head
        first, records = self._requests.since(self._seen_request - 1)
        for offset, record in enumerate(records):
            message = ""
            try:
                self._serve(int(record["op"]), int(record["argument"]))
            except ServoError as error:
                message = str(error)
            except HalError as error:
                self._link.fail(error)
                message = str(error)
            self._replies.record["request"] = first + offset
            self._replies.record["granted"] = not message
            self._replies.record["message"] = _text(message)
            self._replies.push()
        self._seen_request = first + len(records)

    def _serve(self, op: int, argument: int) -> None:
        """Carry one request out. Raises ServoError when it is refused, HalError when the bus fails."""
        core = self._core
        if op == Op.STOP:
            self.stop()
        elif core is None:
            raise ServoError("the leader arm is read only", "ask the follower")
        elif op == Op.CLEAR_ESTOP:
            if argument != self._words.estops:
                raise ServoError("another e-stop was raised meanwhile", "make the arm safe, then clear again")
            self._words.clear(argument)
            core.clear_estop()
        elif op == Op.HOLD:
            core.hold()
        elif op == Op.ACKNOWLEDGE:
            core.acknowledge()
        elif op == Op.CLEAR_FAULT:
            self._link.take_over(core)
        elif op == Op.ENABLE:
            self._enable(core)
        elif op == Op.DISABLE:
            if self._link.fault is not Fault.NONE:
                self._link.take_over(core)
            core.lower()
        elif op == Op.RELEASE:
            core.release()
            self._link.release()
        else:
            raise ServoError(f"unknown request {op}", "run runtime and bus process of one version")

    def _enable(self, core: ServoCore) -> None:
        if self._stopping:
            raise ServoError("the bus process is stopping", "start it again")
        if self._link.fault is not Fault.NONE:
            raise ServoError(f"the bus is in fault: {self._link.fault.name.lower()}", "clear the fault first")
        self._link.energise(core)

    def _publish(self, wake: Wake, pacer: Pacer, joints: JointState | None, step: ServoStep | None) -> None:
        now_ns = time.monotonic_ns()
        if joints is None and now_ns - self._published_ns < _FAULT_PUBLISH_NS:
            return
        self._published_ns = now_ns
        record, core, link = self._state.record, self._core, self._link
        if joints is not None:
            write_joints(record, joints)
        if step is not None:
            record["goal"], record["clamped"] = step.goal, step.clamped
            record["phase"], record["cause"] = step.phase, step.cause
            record["contact_joint"], record["residual"] = step.contact_joint, step.residual
        elif core is None and joints is not None:
            record["goal"], record["phase"] = joints.position, Phase.RELEASE
        if core is not None:
            record["estopped"] = core.estopped
            record["dropped_commands"] = core.counters.dropped
        record["fault"], record["message"] = link.fault, _text(link.message)
        record["torque"] = link.torque
        record["counters"] = link.port.counters
        record["late_ns"], record["exec_ns"] = wake.late_ns, now_ns - wake.deadline_ns - wake.late_ns
        record["cycles"], record["overruns"] = self._cycles, pacer.overruns.total()
        self._state.push()


def _text(message: str) -> bytes:
    """A message as the rings carry it."""
    return message.encode()[:MESSAGE_BYTES]
