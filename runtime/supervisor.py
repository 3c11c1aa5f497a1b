"""The supervisor: typed events in, state out. Pure, and tested over its whole table.

``off``      nothing commands the arm; it is released, or the servo core is letting it down.
``ready``    energised and holding, waiting to be told what to do.
``teleop``   follows the leader or a remote operator.
``policy``   follows a policy.
``hold``     energised, motion stopped for a reason (contact, lost lease, stale command); a person resumes.
``fault``    the bus or a motor failed; the motors' own watchdog holds. Left only through ``off``.
``estop``    latched. Left only by an explicit clear, and only to ``off``.

Only ``ENABLE`` from ``off`` energises. ``ESTOP`` is accepted in every state.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """States of one arm, by the names that cross the wire."""

    OFF = "off"
    READY = "ready"
    TELEOP = "teleop"
    POLICY = "policy"
    HOLD = "hold"
    FAULT = "fault"
    ESTOP = "estop"

    @property
    def energised(self) -> bool:
        """The motors carry torque on the supervisor's behalf."""
        return self in (State.READY, State.TELEOP, State.POLICY, State.HOLD)

    @property
    def moving(self) -> bool:
        """Waypoints are being sent."""
        return self in (State.TELEOP, State.POLICY)


class Event(StrEnum):
    """What happens to an arm."""

    ENABLE = "enable"
    DISABLE = "disable"
    TELEOP = "teleop"
    POLICY = "policy"
    STOP = "stop"
    HOLD = "hold"
    RESUME = "resume"
    CONTACT = "contact"
    LEASE_LOST = "lease_lost"
    COMMAND_STALE = "command_stale"
    RELEASED = "released"
    BUS_FAULT = "bus_fault"
    MOTOR_FAULT = "motor_fault"
    CLEAR_FAULT = "clear_fault"
    ESTOP = "estop"
    CLEAR_ESTOP = "clear_estop"


_FAULTS = (Event.BUS_FAULT, Event.MOTOR_FAULT)
_HOLDS = (Event.HOLD, Event.CONTACT, Event.LEASE_LOST, Event.COMMAND_STALE)


def _table() -> dict[tuple[State, Event], State]:
    """Every pair that changes the state; all others leave it as it is."""
    table: dict[tuple[State, Event], State] = {(State.OFF, Event.ENABLE): State.READY}
    for state in State:
        if state is not State.ESTOP:
            table[state, Event.ESTOP] = State.ESTOP
        if state not in (State.ESTOP, State.FAULT):
            table.update({(state, fault): State.FAULT for fault in _FAULTS})
        if state.energised:
            table[state, Event.DISABLE] = State.OFF
            table[state, Event.RELEASED] = State.OFF
        if state in (State.READY, State.TELEOP, State.POLICY):
            table.update({(state, hold): State.HOLD for hold in _HOLDS})
    table[State.READY, Event.TELEOP] = State.TELEOP
    table[State.READY, Event.POLICY] = State.POLICY
    # A person takes over from a policy, and hands back, without stopping the arm.
    table[State.POLICY, Event.TELEOP] = State.TELEOP
    table[State.TELEOP, Event.POLICY] = State.POLICY
    table[State.TELEOP, Event.STOP] = State.READY
    table[State.POLICY, Event.STOP] = State.READY
    table[State.HOLD, Event.RESUME] = State.READY
    table[State.FAULT, Event.CLEAR_FAULT] = State.OFF
    table[State.ESTOP, Event.CLEAR_ESTOP] = State.OFF
    return table


TABLE = MappingProxyType(_table())


def transition(state: State, event: Event) -> State:
    """The state after ``event``; the same state when the event means nothing there."""
    return TABLE.get((state, event), state)


def accepts(state: State, event: Event) -> bool:
    """Whether ``event`` changes anything in ``state``: what a person is told when it does not."""
    return (state, event) in TABLE
