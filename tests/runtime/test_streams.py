"""The stream table is consistent, and what reads it gets what it says."""

from __future__ import annotations

import pytest

from runtime.control import ControlConfig
from runtime.streams import (
    NS,
    SERVO_HZ,
    SERVO_NS,
    STEPS_PER_TICK,
    STREAMS,
    Owner,
    markdown,
    recorded_streams,
)

# The names of an episode that the recorder, the importer and the learner agree on.
EPISODE_STREAMS = {
    "observation.state": ("float32", (6,)),
    "action": ("float32", (6,)),
    "action.asked": ("float32", (6,)),
    "observation.velocity": ("float32", (6,)),
    "observation.effort": ("float32", (6,)),
    "observation.temperature": ("float32", (6,)),
    "observation.voltage": ("float32", (6,)),
    "observation.hardware_error": ("uint8", (6,)),
    "tick.source": ("uint8", ()),
    "tick.lateness_ms": ("float32", ()),
    "bus.position": ("float32", (6,)),
    "bus.velocity": ("float32", (6,)),
    "bus.effort": ("float32", (6,)),
    "bus.goal": ("float32", (6,)),
}


def test_episode_contract() -> None:
    assert {s.name: (s.dtype, s.shape) for s in recorded_streams()} == EPISODE_STREAMS


@pytest.mark.parametrize("name", STREAMS)
def test_row_is_sane(name: str) -> None:
    stream = STREAMS[name]
    assert stream.name == name
    assert stream.unit
    if stream.rate_hz:
        assert stream.fresh_s > 1.5 / stream.rate_hz, "stale between two samples in time"
    assert stream.jitter_ms * 1e6 < (stream.period_ns or 1)


def test_recorded_names_are_unique() -> None:
    names = [stream.recorded_as for stream in STREAMS.values() if stream.recorded_as]
    assert len(names) == len(set(names))


def test_servo_steps_fill_a_tick() -> None:
    assert abs(SERVO_NS * STEPS_PER_TICK - ControlConfig().period_ns) < STEPS_PER_TICK
    assert STREAMS["bus.position"].period_ns == SERVO_NS
    assert round(NS / SERVO_HZ) == SERVO_NS


def test_documentation_has_every_row() -> None:
    lines = markdown().splitlines()
    assert len(lines) == len(STREAMS) + 2
    assert all(any(f"`{name}`" in line for line in lines) for name in STREAMS)
    assert any(owner.value in markdown() for owner in Owner)
