"""The whole supervisor table, spelled out: what each event does in each state, and nothing else."""

from __future__ import annotations

import itertools

import pytest

from runtime.supervisor import TABLE, Event, State, accepts, transition

# One row per state: the events that mean something there and where they lead.
EXPECTED: dict[str, dict[str, str]] = {
    "off": {"enable": "ready", "estop": "estop", "bus_fault": "fault", "motor_fault": "fault"},
    "ready": {
        "disable": "off",
        "released": "off",
        "teleop": "teleop",
        "policy": "policy",
        "hold": "hold",
        "contact": "hold",
        "lease_lost": "hold",
        "command_stale": "hold",
        "bus_fault": "fault",
        "motor_fault": "fault",
        "estop": "estop",
    },
    "teleop": {
        "disable": "off",
        "released": "off",
        "policy": "policy",
        "stop": "ready",
        "hold": "hold",
        "contact": "hold",
        "lease_lost": "hold",
        "command_stale": "hold",
        "bus_fault": "fault",
        "motor_fault": "fault",
        "estop": "estop",
    },
    "policy": {
        "disable": "off",
        "released": "off",
        "teleop": "teleop",
        "stop": "ready",
        "hold": "hold",
        "contact": "hold",
        "lease_lost": "hold",
        "command_stale": "hold",
        "bus_fault": "fault",
        "motor_fault": "fault",
        "estop": "estop",
    },
    "hold": {
        "disable": "off",
        "released": "off",
        "resume": "ready",
        "bus_fault": "fault",
        "motor_fault": "fault",
        "estop": "estop",
    },
    "fault": {"clear_fault": "off", "estop": "estop"},
    "estop": {"clear_estop": "off"},
}

PAIRS = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=[f"{s.value}-{e.value}" for s, e in PAIRS])
def test_table(state: State, event: Event) -> None:
    expected = EXPECTED[state.value].get(event.value)
    assert transition(state, event) == (expected or state.value)
    assert accepts(state, event) == (expected is not None)


def test_the_expected_table_names_every_state_and_event() -> None:
    """A row that is missing or misspelt here would let anything pass."""
    assert list(EXPECTED) == [state.value for state in State]
    assert {event for row in EXPECTED.values() for event in row} == {event.value for event in Event}
    assert {after for row in EXPECTED.values() for after in row.values()} <= {state.value for state in State}
    assert len(TABLE) == sum(map(len, EXPECTED.values()))


@pytest.mark.parametrize("pair", sorted(TABLE), ids=lambda pair: f"{pair[0].value}-{pair[1].value}")
def test_a_wrong_table_would_fail(pair: tuple[State, Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any one entry lost, or led elsewhere, is noticed by the comparison above."""
    state, event = pair
    for wrong in {None, *State} - {TABLE[pair]}:
        table = {key: after for key, after in TABLE.items() if key != pair}
        monkeypatch.setattr("runtime.supervisor.TABLE", table if wrong is None else {**table, pair: wrong})
        with pytest.raises(AssertionError):
            test_table(state, event)


def test_only_enable_from_off_energises() -> None:
    energising = [(s, e) for (s, e), after in TABLE.items() if after.energised and not s.energised]
    assert energising == [(State.OFF, Event.ENABLE)]


def test_estop_is_heard_everywhere_and_left_only_by_its_clear() -> None:
    assert all(transition(state, Event.ESTOP) is State.ESTOP for state in State)
    assert [e for e in Event if transition(State.ESTOP, e) is not State.ESTOP] == [Event.CLEAR_ESTOP]
    assert transition(State.ESTOP, Event.CLEAR_ESTOP) is State.OFF


def test_nothing_starts_moving_but_by_asking_for_it() -> None:
    starts = {e for (s, e), after in TABLE.items() if after.moving and not s.moving}
    assert starts == {Event.TELEOP, Event.POLICY}
