"""What of a loop's ticks ends up in the episode, and what a recording that fails does to it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from loop_bench import Bench, no_losses

from episodes.errors import RecordingError
from episodes.store import EpisodeStore
from runtime.nouns import Source
from runtime.supervisor import Event, State


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
