"""The servo core: from waypoints at control rate to goals at servo rate, through the guard.

No I/O and no clock of its own: the bus process steps it at 240 Hz, lockstep simulation steps it in
simulated time, and both see the same goals. Phases:

``release``  no torque; only ``start`` leaves it.
``follow``   interpolates from the present goal to the newest waypoint, then waits there until it expires.
``hold``     brakes and stands still; too long a hold becomes
``lower``    a slow motion to the rest pose, then ``release``. Torque-off alone would drop the arm.

Contact and e-stop freeze the goals where the arm was measured; both refuse waypoints until a person
has cleared them. An e-stop and a contact hold are never lowered by themselves: nothing may move then.
"""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np

from hal.types import NUM_JOINTS, JointState, Vector
from runtime.contact import ContactDetector
from runtime.errors import ServoError
from runtime.guard import GuardLimits, guard_kernel, stopping_distance
from runtime.nouns import Waypoint
from runtime.servo_types import HoldCause, Phase, ServoConfig, ServoCounters, ServoStep, Verdict
from runtime.streams import NS, SERVO_HZ

__all__ = ["HoldCause", "Phase", "ServoConfig", "ServoCore", "ServoCounters", "ServoStep", "Verdict"]

_GRIPPER = NUM_JOINTS - 1
_ARRIVED_RAD = 1e-3
_LOWER_GRACE_NS = 2 * NS


@numba.njit(cache=True, nogil=True)
def _interpolate(wanted: Vector, path: Vector, done: float, span_s: float, ease: bool) -> None:
    """Fill ``wanted`` (2, n: position, velocity) at ``done`` (0 … 1) of ``path`` (2, n: from, to).

    In a straight line, or with ``ease`` along 3d² − 2d³, which begins and ends at rest. A ``span_s``
    of 0 means that the path is over.
    """
    d = min(max(done, 0.0), 1.0)
    share = d * d * (3.0 - 2.0 * d) if ease else d
    slope = 6.0 * d * (1.0 - d) if ease else 1.0
    for i in range(path.shape[1]):
        way = path[1, i] - path[0, i]
        wanted[0, i] = path[1, i] if d >= 1.0 else path[0, i] + share * way
        wanted[1, i] = slope * way / span_s if span_s > 0.0 else 0.0


class ServoCore:
    """See the module. Deterministic: the same calls give the same bytes. Not thread-safe."""

    def __init__(
        self,
        limits: GuardLimits | None = None,
        config: ServoConfig | None = None,
        dt_s: float = 1.0 / SERVO_HZ,
    ) -> None:
        self.limits = limits or GuardLimits()
        self.config = config or ServoConfig()
        self._dt_s = dt_s
        self._dt_ns = round(dt_s * NS)
        self._table = self.limits.table()
        self._state = np.zeros((2, NUM_JOINTS))
        self._wanted = np.zeros((2, NUM_JOINTS))
        self._path = np.zeros((2, NUM_JOINTS))
        self._clamped = np.zeros(NUM_JOINTS, np.uint8)
        self._contact = ContactDetector(self.config.contact, dt_s) if self.config.contact else None
        self._counters = ServoCounters()
        self._phase = Phase.RELEASE
        self._cause = HoldCause.NONE
        self._estopped = False
        self._freeze: HoldCause | None = None
        self._accepting = False
        self._contact_joint = -1
        self._contact_residual = 0.0
        self._now_ns = self._start_ns = self._hold_ns = 0
        self._from_ns = self._target_ns = self._expires_ns = self._release_ns = 0
        self._seq = -1

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def cause(self) -> HoldCause:
        return self._cause

    @property
    def goal(self) -> Vector:
        """The last goal let through, rad (6,); a copy."""
        return self._state[0].copy()

    @property
    def estopped(self) -> bool:
        """An e-stop is latched."""
        return self._estopped

    @property
    def counters(self) -> ServoCounters:
        """A copy."""
        return replace(self._counters)

    def _count(self, field: str) -> None:
        setattr(self._counters, field, getattr(self._counters, field) + 1)

    def start(self, measured: JointState) -> None:
        """Energise at the measured pose, ramp the velocity limit up, accept waypoints of any number.

        An arm that is already energised keeps its goal, so nothing jerks. Raises ServoError while an
        e-stop is latched or when the measured pose is not finite.
        """
        if self._estopped:
            raise ServoError("the e-stop is latched", "make the arm safe, then clear the e-stop")
        self._require_pose(measured)
        self._now_ns = self._start_ns = measured.t_ns
        if self._phase is Phase.RELEASE:
            self._state[0] = measured.position
            self._state[1] = 0.0
        if self._contact:
            self._contact.reset(measured)
        self._freeze = None
        self._contact_joint = -1
        self._accepting = True
        self._seq = -1
        self._begin_hold(HoldCause.STARTED)

    @staticmethod
    def _require_pose(measured: JointState) -> None:
        if measured.position.shape != (NUM_JOINTS,) or not np.isfinite(measured.position).all():
            raise ServoError("the measured pose is not finite", "check the bus, then enable again")

    def command(self, waypoint: Waypoint) -> Verdict:
        """Replace the present waypoint; any verdict but ACCEPTED leaves the motion as it was."""
        verdict = self._judge(waypoint)
        self._count(verdict.name.lower())
        if verdict is Verdict.ACCEPTED:
            self._seq = waypoint.seq
            self._path[0] = self._state[0]
            self._path[1] = waypoint.position
            self._from_ns, self._target_ns = self._now_ns, waypoint.target_ns
            self._expires_ns = min(waypoint.expires_ns, self._now_ns + round(self.config.max_ttl_s * NS))
            self._phase, self._cause = Phase.FOLLOW, HoldCause.NONE
        return verdict

    def _judge(self, waypoint: Waypoint) -> Verdict:
        position = waypoint.position
        if not isinstance(position, np.ndarray) or position.shape != (NUM_JOINTS,):
            return Verdict.MALFORMED
        if position.dtype.kind != "f" or not np.isfinite(position).all():
            return Verdict.MALFORMED
        if not self._accepting:
            return Verdict.REFUSED
        if waypoint.seq <= self._seq:
            return Verdict.OUT_OF_ORDER
        return Verdict.EXPIRED if waypoint.expires_ns <= self._now_ns else Verdict.ACCEPTED

    def adopt(self, measured: JointState) -> None:
        """Take over an arm that carries torque from before: hold it where it is, accept no waypoints.

        Nothing is energised; ``start`` or ``lower`` comes next. Raises ServoError when the measured pose
        is not finite.
        """
        self._require_pose(measured)
        self._now_ns = self._start_ns = measured.t_ns
        self._state[0] = measured.position
        self._state[1] = 0.0
        self._freeze, self._accepting, self._contact_joint = None, False, -1
        if self._contact:
            self._contact.reset(measured)
        self._begin_hold(HoldCause.ESTOP if self._estopped else HoldCause.CLEARED)

    def hold(self, *, latch: bool = False) -> None:
        """Brake and stand still until the next waypoint; with ``latch`` until ``acknowledge``."""
        if self._phase is Phase.FOLLOW:
            self._begin_hold(HoldCause.ASKED)
        self._accepting = self._accepting and not latch

    def lower(self) -> None:
        """Go slowly to the rest pose, then release. Does nothing while released or e-stopped."""
        if self._phase is not Phase.RELEASE and not self._estopped:
            self._begin_lower()

    def release(self) -> None:
        """Take the torque away at once. The arm drops: ``lower`` is the gentle way."""
        self._phase, self._cause, self._accepting = Phase.RELEASE, HoldCause.NONE, False
        self._state[1] = 0.0
        self._contact_joint = -1

    def estop(self) -> None:
        """Freeze at the pose measured in the next step, keep the torque, latch."""
        if not self._estopped:
            self._estopped, self._accepting = True, False
            self._freeze = None if self._phase is Phase.RELEASE else HoldCause.ESTOP

    def clear_estop(self) -> None:
        """Unlatch. The arm stays held, without accepting waypoints, until ``start`` or the hold limit."""
        if self._estopped:
            self._estopped, self._freeze = False, None
            if self._phase is not Phase.RELEASE:
                self._begin_hold(HoldCause.CLEARED)

    def acknowledge(self) -> None:
        """Accept waypoints again after a contact stop or a latched hold; not after an e-stop."""
        if self._phase is Phase.HOLD and not self._estopped and self._cause is not HoldCause.CLEARED:
            self._contact_joint = -1
            self._accepting = True
            self._begin_hold(HoldCause.ASKED)

    def step(self, now_ns: int, measured: JointState) -> ServoStep:
        """One servo period: the goal to write now. ``now_ns`` must not go back."""
        self._now_ns = now_ns
        if self._freeze is not None:
            self._freeze_at(measured, self._freeze)
        if self._phase is not Phase.RELEASE:
            self._advance_phase()
        if self._phase is Phase.RELEASE:
            return self._release_step(measured)
        if not guard_kernel(
            self._state,
            self._wanted,
            measured.position,
            self._table,
            self._speed_scale(),
            self._dt_s,
            self._clamped,
        ):
            self._count("rejected_steps")
        residual = self._watch_contact(measured)
        return ServoStep(
            self._state[0].copy(),
            self._state[1].copy(),
            self._phase,
            self._cause,
            self._clamped.copy(),
            True,
            self._contact_joint,
            residual,
        )

    def _advance_phase(self) -> None:
        """Let time pass: expiry, hold limit, end of lowering; and fill ``_wanted``."""
        now_ns = self._now_ns
        if self._phase is Phase.FOLLOW and now_ns >= self._expires_ns:
            self._count("expiries")
            self._begin_hold(HoldCause.EXPIRED)
        latched = self._cause in (HoldCause.CONTACT, HoldCause.ESTOP)
        held_ns = now_ns - self._hold_ns
        if self._phase is Phase.HOLD and not latched and held_ns >= self.config.hold_limit_s * NS:
            self._begin_lower()
        if self._phase is Phase.LOWER and self._lowered():
            self.release()
        elif self._phase in (Phase.FOLLOW, Phase.LOWER):
            span_ns = self._target_ns - self._from_ns
            done = (now_ns - self._from_ns) / span_ns if span_ns > 0 else 1.0
            moving = span_ns > 0 and now_ns - self._dt_ns < self._target_ns
            span_s = span_ns / NS if moving else 0.0
            _interpolate(self._wanted, self._path, done, span_s, self._phase is Phase.LOWER)

    def _lowered(self) -> bool:
        """The goal has arrived at the rest pose, or twice the time it should have taken has passed.

        Missed cycles make it late; an arm that something holds up never lets it arrive.
        """
        if self._now_ns < self._release_ns:
            return False
        arrived = float(np.abs(self._path[1] - self._state[0]).max()) < _ARRIVED_RAD
        return arrived or self._now_ns >= 2 * self._release_ns - self._from_ns + _LOWER_GRACE_NS

    def _watch_contact(self, measured: JointState) -> float:
        """Freeze on contact; the largest residual of this step, while it is frozen the one that froze it."""
        if self._contact_joint >= 0:
            return self._contact_residual
        if self._contact is None or self._estopped or measured.age_ns.any():
            return 0.0
        joint = self._contact.update(self._state[0], self._state[1], measured)
        if joint < 0:
            return float(self._contact.residual.max())
        self._count("contacts")
        self._accepting = False
        self._contact_joint = joint
        self._contact_residual = residual = float(self._contact.residual[joint])
        self._freeze_at(measured, HoldCause.CONTACT)
        return residual

    def _freeze_at(self, measured: JointState, cause: HoldCause) -> None:
        """Goals jump back to where the arm is: the one motion without an acceleration limit.

        It lowers every motor's force. After a contact the gripper keeps what it grips.
        """
        self._freeze = None
        goal = self._state[0]
        low, high = np.minimum(self._table[0], goal), np.maximum(self._table[1], goal)
        frozen = np.where(np.isfinite(measured.position), np.clip(measured.position, low, high), goal)
        if cause is HoldCause.CONTACT:
            frozen[_GRIPPER] = goal[_GRIPPER]
        self._state[0] = frozen
        self._state[1] = 0.0
        self._begin_hold(cause)

    def _begin_hold(self, cause: HoldCause) -> None:
        """Stand where braking from the present velocity ends."""
        for i in range(NUM_JOINTS):
            velocity = self._state[1, i]
            rest = stopping_distance(abs(velocity), self._table[3, i], self._dt_s)
            self._wanted[0, i] = self._state[0, i] + (rest if velocity > 0.0 else -rest)
        self._wanted[1] = 0.0
        self._phase, self._cause, self._hold_ns = Phase.HOLD, cause, self._now_ns

    def _begin_lower(self) -> None:
        self._accepting = False
        self._path[:] = self._state[0]
        self._path[1, :_GRIPPER] = self.config.rest_pose
        np.clip(self._path[1], self._table[0], self._table[1], out=self._path[1])
        way = float(np.abs(self._path[1] - self._path[0]).max())
        self._from_ns = self._now_ns
        # The eased path is half as fast again in its middle as on average.
        self._target_ns = self._now_ns + round(1.5 * way / self.config.lower_speed * NS)
        self._release_ns = self._target_ns + round(self.config.settle_s * NS)
        self._phase, self._cause = Phase.LOWER, HoldCause.NONE
        self._contact_joint = -1

    def _release_step(self, measured: JointState) -> ServoStep:
        """Released: the goal is wherever the arm is, so nothing is stale when it is energised again."""
        sound = np.isfinite(measured.position)
        self._state[0] = np.where(sound, measured.position, self._state[0])
        self._clamped[:] = 0
        return ServoStep(
            self._state[0].copy(),
            self._state[1].copy(),
            Phase.RELEASE,
            HoldCause.ESTOP if self._estopped else HoldCause.NONE,
            self._clamped.copy(),
            False,
            -1,
            0.0,
        )

    def _speed_scale(self) -> float:
        """Share of the velocity limit allowed so soon after the start."""
        ramp_ns = self.config.ramp_s * NS
        passed_ns = self._now_ns - self._start_ns
        if passed_ns >= ramp_ns:
            return 1.0
        floor = self.config.ramp_floor
        return floor + (1.0 - floor) * max(passed_ns, 0) / ramp_ns
