"""The slow and lossy line of lockstep, and the pace at which it is asked over."""

from __future__ import annotations

import numpy as np

from runtime.line import LineFaults, LockstepLine
from runtime.nouns import ActionChunk
from runtime.pace import Pace

TICK_S = 1 / 30


def chunk(tick: int) -> ActionChunk:
    return ActionChunk(np.zeros((8, 6), np.float32), tick, 0, "a", 1, 0.0)


def test_answers_come_after_the_delay_and_one_is_asked_for_at_a_time():
    line = LockstepLine(LineFaults(delay_ticks=3), 0, TICK_S)
    line.send(chunk(0), 0)
    assert not line.ready(1)
    assert [line.receive(tick) for tick in (0, 1, 2)] == [None] * 3
    answer = line.receive(3)
    assert answer is not None
    assert answer.start_tick == 0
    assert line.ready(3)


def test_a_lost_answer_is_asked_for_again_long_before_the_time_out():
    line = LockstepLine(LineFaults(delay_ticks=2, timeout_ticks=30), 0, TICK_S)
    for start in range(0, 40, 4):
        line.send(chunk(start), start)
        assert line.receive(start + 2) is not None
    lossy = LockstepLine(LineFaults(delay_ticks=2, lost=1.0, timeout_ticks=30), 0, TICK_S)
    lossy.pace = line.pace
    lossy.send(chunk(40), 40)
    again = next(tick for tick in range(41, 70) if lossy.ready(tick))
    assert 43 <= again <= 46


def test_losses_are_the_seeds_and_their_share_is_what_was_asked_for():
    def lost(seed: int) -> int:
        line = LockstepLine(LineFaults(lost=0.1), seed, TICK_S)
        for tick in range(2000):
            line.send(chunk(tick), tick)
            line.receive(tick)
        return line.lost

    assert lost(1) == lost(1) != lost(2)
    assert 140 < lost(1) < 260


def test_the_pace_follows_rfc_6298():
    pace = Pace(TICK_S, 1.0)
    assert pace.overdue_s == 1.0
    pace.answered(0.08)
    assert pace.overdue_s == 0.08 + 4 * 0.04
    for _ in range(200):
        pace.answered(0.08)
    assert abs(pace.overdue_s - (0.08 + TICK_S)) < 1e-6
    pace.forget()
    assert pace.mean_s is None
