"""Monitors: each kind is raised by its trouble and by nothing else; flags are spans; help needs both."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from hal.types import JointState
from runtime.monitors import MonitorBank, MonitorConfig, MonitorRow
from runtime.monitors.thresholds import ThresholdError, Thresholds
from runtime.nouns import Flag, Source

TICK_NS = 33_333_333
THRESHOLDS: dict[str, Any] = {
    "disagreement": {"threshold": [0.1, 0.2]},
    "unfamiliar": {"mean": [0.0, 0.0], "precision_factor": [[1.0, 0.0], [0.0, 0.5]], "threshold": [2.0]},
    "n_calibration": 60,
    "alpha": 0.05,
}


def make_row(tick: int, **over: Any) -> MonitorRow:
    """A healthy tick: the joints stand where their goals are."""
    position = np.asarray(over.pop("position", np.zeros(6)), dtype=np.float64)
    state = JointState(
        seq=tick,
        t_ns=tick * TICK_NS,
        position=position,
        velocity=np.asarray(over.pop("velocity", np.zeros(6)), dtype=np.float64),
        effort=np.asarray(over.pop("effort", np.zeros(6)), dtype=np.float64),
        temperature=np.full(6, 30.0),
        voltage=np.full(6, 5.0),
        hardware_error=np.asarray(over.pop("hardware_error", np.zeros(6)), dtype=np.uint8),
        moving=np.zeros(6, dtype=bool),
        age_ns=np.asarray(over.pop("age_ns", np.zeros(6)), dtype=np.int64),
    )
    goal = np.asarray(over.pop("goal", position), dtype=np.float64)
    asked = np.asarray(over.pop("asked", goal), dtype=np.float64)
    return MonitorRow(tick, tick * TICK_NS, state, goal, asked, **over)


def make_bank(
    thresholds: dict[str, Any] | None = None, limit: int | None = None, **config: Any
) -> MonitorBank:
    return MonitorBank(MonitorConfig(**config), thresholds, limit)


def run(bank: MonitorBank, rows: list[MonitorRow]) -> list[Flag]:
    """Feed the rows; returns the flags that began, in order."""
    return [flag for row in rows for flag in bank.update(row)]


def joint(index: int, value: float) -> list[float]:
    vector = [0.0] * 6
    vector[index] = value
    return vector


def test_a_healthy_episode_raises_nothing():
    bank = make_bank(THRESHOLDS, limit=400)
    swing = [np.full(6, 0.5 * np.sin(t / 10)) for t in range(300)]
    rows = [
        make_row(t, position=swing[max(t - 3, 0)], goal=swing[t], chunk_error=0.01, novelty=0.5)
        for t in range(300)
    ]
    assert run(bank, rows) == []
    assert bank.finish() == []
    assert not bank.ask_help


def test_timeout_begins_at_the_limit_and_never_after_success():
    bank = make_bank(limit=10)
    began = run(bank, [make_row(100 + t) for t in range(15)])
    assert [flag.kind for flag in began] == ["timeout"]
    assert began[0].start_ns == 110 * TICK_NS
    (final,) = bank.finish()
    assert final.end_ns == 114 * TICK_NS
    bank.reset()
    assert run(bank, [make_row(t, task_success=t == 5) for t in range(15)]) == []
    bank.reset(task_limit_ticks=3)
    assert run(bank, [make_row(t) for t in range(4)])[0].evidence["limit_ticks"] == 3


def test_a_person_takes_the_time_it_needs():
    bank = make_bank(limit=10)
    assert run(bank, [make_row(t, source=Source.TELEOP) for t in range(300)]) == []
    assert bank.finish() == []
    bank.reset()
    rollout = [Source.POLICY] * 6 + [Source.INTERVENTION] * 300 + [Source.POLICY] * 5
    began = run(bank, [make_row(t, source=source) for t, source in enumerate(rollout)])
    assert [(flag.kind, flag.start_ns) for flag in began] == [("timeout", 310 * TICK_NS)]


def test_tracking_wants_an_error_that_lasts_and_names_the_joint():
    bank = make_bank(tracking_hold_ticks=5)
    short = [make_row(t, goal=joint(2, 1.0 if t < 4 else 0.0)) for t in range(12)]
    assert run(bank, short) == []
    bank.reset()
    began = run(bank, [make_row(t, goal=joint(2, 1.0)) for t in range(12)])
    assert [(flag.kind, flag.evidence["joint"]) for flag in began] == [("tracking", "elbow_flex")]
    assert began[0].start_ns == 0
    assert began[0].score == pytest.approx(4.0)


def test_tracking_forgives_lag_and_the_gripper():
    bank = make_bank(tracking_lag_ticks=6)
    ramp = [make_row(t, goal=joint(0, 0.1 * t), position=joint(0, 0.1 * max(t - 5, 0))) for t in range(60)]
    assert run(bank, ramp) == []
    bank.reset()
    assert run(bank, [make_row(t, goal=joint(5, -2.0)) for t in range(60)]) == []


def test_stall_is_effort_without_motion_short_of_the_goal():
    push = {"goal": joint(3, 0.2), "effort": joint(3, 1.3)}
    bank = make_bank(stall_hold_ticks=5)
    began = run(bank, [make_row(t, **push) for t in range(10)])
    assert [(flag.kind, flag.evidence["joint"]) for flag in began] == [("stall", "wrist_flex")]
    for harmless in (
        {**push, "velocity": joint(3, 0.5)},
        {**push, "goal": joint(3, 0.01)},
        {**push, "effort": joint(3, 0.5)},
        {"goal": joint(5, -0.2), "effort": joint(5, 1.7)},
    ):
        bank.reset()
        assert run(bank, [make_row(t, **harmless) for t in range(40)]) == []


def test_a_hardware_error_bit_flags_at_once():
    bank = make_bank()
    (flag,) = run(bank, [make_row(0, hardware_error=[0, 0x20, 0, 0, 0, 0])])
    assert flag.kind == "stall"
    assert flag.evidence["joint"] == "shoulder_lift"
    assert "overload" in flag.evidence["meaning"]


def test_lost_replies_count_within_the_window_only():
    bank = make_bank(lost_limit=6, lost_window_ticks=30)
    slow = [make_row(t, bus_lost=t // 10) for t in range(300)]
    assert run(bank, slow) == []
    bank.reset()
    burst = [make_row(t, bus_lost=1000 + (t if t < 10 else 10)) for t in range(20)]
    assert [flag.kind for flag in run(bank, burst)] == ["lost_replies"]
    bank.reset()
    assert run(bank, [make_row(t, bus_lost=500 if t < 5 else 0) for t in range(10)]) == []


def test_a_silent_motor_is_lost_replies_too():
    (flag,) = run(make_bank(), [make_row(3, age_ns=[0, 0, 80_000_000, 0, 0, 0])])
    assert flag.kind == "lost_replies"
    assert flag.evidence["joint"] == "elbow_flex"
    assert flag.start_ns == 3 * TICK_NS - 80_000_000


def test_disagreement_uses_the_band_of_its_bucket():
    bank = make_bank(THRESHOLDS)
    rows = [make_row(t, chunk_error=0.15 if t in (8, 24, 200) else None) for t in range(220)]
    began = run(bank, rows)
    assert [(flag.kind, flag.start_ns // TICK_NS) for flag in began] == [("disagreement", 8)]
    assert began[0].score == pytest.approx(1.5)
    (final,) = bank.finish()
    assert final.end_ns == 23 * TICK_NS, "lasts until the next chunk agrees"


def test_reversals_count_when_the_bundle_calibrates_them():
    dither = [
        make_row(t, asked=joint(1, 0.02 * (t % 2)), chunk_error=0.0 if t % 16 == 0 else None)
        for t in range(40)
    ]
    assert run(make_bank(THRESHOLDS), dither) == []
    bank = make_bank({"disagreement": {"threshold": [0.1], "reversal_threshold": [8.0]}})
    assert [flag.kind for flag in run(bank, dither)] == ["disagreement"]
    assert bank.signals[1].reversals == 15
    assert bank.signals[1].tick == 16


def test_novelty_is_the_mahalanobis_distance():
    bank = make_bank(THRESHOLDS)
    assert bank.novelty(np.array([3.0, 8.0], dtype=np.float32)) == pytest.approx(5.0)
    assert bank.novelty(np.zeros(3, dtype=np.float32)) is None
    assert bank.novelty(None) is None
    (flag,) = run(bank, [make_row(0, novelty=5.0)])
    assert flag.kind == "unfamiliar"
    assert flag.score == pytest.approx(2.5)


def chunk_rows(pattern: list[tuple[float, float]]) -> list[MonitorRow]:
    return [make_row(16 * i, chunk_error=e, novelty=n) for i, (e, n) in enumerate(pattern)]


@pytest.mark.parametrize(
    ("pattern", "help_wanted"),
    [
        ([(9.0, 0.0)] * 6, False),
        ([(0.0, 9.0)] * 6, False),
        ([(9.0, 9.0)], False),
        ([(9.0, 9.0)] * 2, True),
        ([(9.0, 0.0), (9.0, 0.0), (0.0, 9.0), (0.0, 9.0)], True),
        ([(9.0, 9.0)] * 2 + [(0.0, 0.0)] * 4, False),
    ],
)
def test_help_is_asked_for_only_when_both_signals_agree_over_the_window(pattern, help_wanted: bool):
    bank = make_bank(THRESHOLDS, help_window=4, help_count=2)
    run(bank, chunk_rows(pattern))
    assert bank.ask_help is help_wanted


def test_a_bundle_without_thresholds_is_silent_and_says_so_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="runtime.monitors.bank"):
        bank = make_bank(None)
        for _ in range(3):
            bank.reset()
            assert run(bank, chunk_rows([(99.0, 99.0)] * 10)) == []
    assert not bank.ask_help
    assert not bank.calibrated
    assert [record.message.split()[0] for record in caplog.records] == ["monitors.uncalibrated"]


def test_a_swap_brings_its_own_thresholds():
    bank = make_bank(None)
    bank.recalibrate(THRESHOLDS)
    assert bank.calibrated
    assert [flag.kind for flag in run(bank, chunk_rows([(0.5, 0.0)]))] == ["disagreement"]


def test_the_persons_motion_is_not_judged_as_the_policys():
    rows = [make_row(t, chunk_error=9.0, novelty=9.0, source=Source.INTERVENTION) for t in range(5)]
    bank = make_bank(THRESHOLDS)
    assert run(bank, rows) == []
    assert not bank.ask_help


def test_a_condition_that_flickers_is_one_flag_and_one_that_returns_is_two():
    bank = make_bank(merge_gap_ticks=30)
    error = [0, 0, 0x20, 0, 0, 0]
    times = [*range(5), 20, 21, 100]
    began = run(bank, [make_row(t, hardware_error=error if t in times else [0] * 6) for t in range(130)])
    assert [flag.start_ns // TICK_NS for flag in began] == [0, 100]
    spans = [(flag.start_ns // TICK_NS, flag.end_ns // TICK_NS) for flag in bank.finish()]
    assert spans == [(0, 21), (100, 100)]


def test_two_runs_over_the_same_rows_are_equal_and_a_reset_leaves_nothing():
    rng = np.random.default_rng(3)
    rows = [
        make_row(
            t,
            goal=rng.normal(0, 0.4, 6),
            effort=rng.normal(0, 1, 6),
            bus_lost=t // 2,
            chunk_error=float(rng.uniform(0, 0.4)) if t % 16 == 0 else None,
            novelty=float(rng.uniform(0, 4)) if t % 16 == 0 else None,
        )
        for t in range(400)
    ]
    bank = make_bank(THRESHOLDS, limit=300)
    run(bank, rows)
    first, signals = bank.finish(), bank.signals
    assert len(first) > 3
    bank.reset()
    assert bank.finish() == []
    run(bank, rows)
    assert bank.finish() == first
    assert bank.signals == signals


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ({"disagreement": {"threshold": []}}, "disagreement.threshold"),
        ({"disagreement": {"threshold": [0.0]}}, "positive"),
        ({"disagreement": {"threshold": ["x"]}}, "numeric"),
        ({"disagreement": {"threshold": [float("nan")]}}, "finite"),
        ({"disagreement": 3}, "not a table"),
        ({"unfamiliar": {"threshold": [1.0], "mean": [0.0], "precision_factor": [1.0]}}, "precision_factor"),
        ({"unfamiliar": {"threshold": [1.0]}}, "mean"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_with_their_place(broken: dict[str, Any], where: str):
    with pytest.raises(ThresholdError, match=where):
        Thresholds.parse(broken)
