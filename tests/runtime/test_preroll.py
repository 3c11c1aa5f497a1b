"""The last seconds are held within their bounds, and become an episode when somebody asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from episodes.errors import RecordingError
from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.types import Frame, JointState
from runtime.nouns import Observation, Source
from runtime.preroll import Preroll
from runtime.recorder import EpisodeRecorder
from tests.runtime.waiting import eventually

TICK_NS = 33_333_333


def observation(tick: int) -> Observation:
    t_ns = tick * TICK_NS
    joints = JointState(
        seq=tick,
        t_ns=t_ns,
        position=np.full(6, tick / 100),
        velocity=np.zeros(6),
        effort=np.zeros(6),
        temperature=np.full(6, 30.0),
        voltage=np.full(6, 12.0),
        hardware_error=np.zeros(6, np.uint8),
        moving=np.zeros(6, bool),
        age_ns=np.zeros(6, np.int64),
    )
    frame = Frame("front", tick, t_ns, np.full((24, 32, 3), tick % 200, np.uint8), False, False)
    return Observation(tick, t_ns, joints, joints.position - 0.5, {"front": frame})


def recorder(store: EpisodeStore, preroll: Preroll | None) -> EpisodeRecorder:
    return EpisodeRecorder(store, [CameraSpec(name="front", height=24, width=32)], 30.0, {}, preroll=preroll)


async def test_the_last_seconds_become_an_episode(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "s") as store:
        preroll = Preroll(1.0, 1 << 24, 95)
        recording = recorder(store, preroll)
        for tick in range(90):
            recording.tick(observation(tick), np.zeros(6), Source.TELEOP)
            await eventually(lambda: preroll._raw.empty())
        assert recording.running is None
        ref, ticks = recording.keep_last("grasp", "success")
        meta = ref.wait(30)
        assert (meta.task, meta.outcome, meta.ticks) == ("grasp", "success", ticks)
        assert 28 <= ticks <= 31
        episode = store.read(ref.id)
        state = episode.streams["observation.state"]
        np.testing.assert_allclose(state.values[:, 0], state.seq / 100, rtol=1e-6)
        frames = episode.frames("front")
        assert abs(len(frames) - 30) <= 2
        assert abs(int(frames[5].mean()) - int(frames.seq[5])) <= 2
        with pytest.raises(RecordingError, match="held"):
            recording.keep_last("again", "success")


def test_memory_is_bounded_and_a_recorded_episode_is_not_kept_twice(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "s") as store:
        preroll = Preroll(1000.0, 50_000, 95)
        recording = recorder(store, preroll)
        for tick in range(200):
            recording.tick(observation(tick), np.zeros(6), Source.TELEOP)
        assert 0 < preroll.bytes <= 60_000
        recording.start("now", "demo")
        assert preroll.bytes == 0
        recording.tick(observation(200), np.zeros(6), Source.TELEOP)
        ref = recording.end("success", "", np.zeros(6))
        assert ref is not None
        assert ref.wait(30).ticks == 1


def test_without_it_nothing_is_held_and_the_remedy_is_named(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "s") as store:
        recording = recorder(store, None)
        assert not recording.listening
        with pytest.raises(RecordingError, match="keep_last_s"):
            recording.keep_last("x", "success")
