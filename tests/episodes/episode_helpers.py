"""What the episode tests share: a small spec and deterministic data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter, WriterConfig

TICK_NS = 33_333_333
LOSSLESS = WriterConfig(wait_when_full=True, group_ms=10)

SPEC = EpisodeSpec(
    task="put the cube in the zone",
    streams=(
        StreamSpec(name="observation.state", shape=(6,), unit="rad", names=tuple("abcdef")),
        StreamSpec(name="action", shape=(6,), unit="rad"),
        StreamSpec(name="tick.source", dtype="uint8"),
    ),
    cameras=(CameraSpec(name="front", height=24, width=32),),
    provenance={"policy": "p1", "session": "s1", "split": "train", "robot": "koch"},
)


def state(tick: int) -> npt.NDArray[np.float32]:
    """The state every test records at ``tick``: it can be checked without remembering it."""
    return np.arange(6, dtype=np.float32) + tick


def picture(tick: int) -> npt.NDArray[np.uint8]:
    """A smooth 24×32 picture whose mean tells its tick."""
    ramp = np.linspace(0, 60, 24 * 32).reshape(24, 32, 1)
    return np.asarray(np.clip(ramp + (tick % 60) * 3, 0, 255) * np.ones(3), np.uint8)


def record_ticks(writer: EpisodeWriter, ticks: int, start: int = 0) -> None:
    """Append ``ticks`` ticks of the spec above."""
    for tick in range(start, start + ticks):
        t_ns = tick * TICK_NS
        writer.append("observation.state", t_ns, tick, state(tick))
        writer.append("action", t_ns, tick, state(tick) + 0.5)
        writer.append("tick.source", t_ns, tick, 1)
        writer.append_frame("front", t_ns + 1000, tick, picture(tick), repeated=tick % 10 == 9)


def record_episode(
    store: EpisodeStore, ticks: int = 30, episode_id: str | None = None, **spec: object
) -> str:
    """One whole published episode; its id."""
    writer = store.begin(SPEC.model_copy(update=spec), config=LOSSLESS, started_ns=0, episode_id=episode_id)
    record_ticks(writer, ticks)
    return writer.end("success", "done").wait(30).id
