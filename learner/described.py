"""What a set of episodes says about the robot it was recorded on, as a bundle's manifest puts it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from episodes.reader import Episode
from learner.errors import DataError
from learner.loading import ReadableStore
from policies.manifest import KOCH_FEATURES


@dataclass(frozen=True, slots=True)
class RobotDescription:
    """Robot, joints, rate and unit that all episodes of a set share. ``unit``: "rad" or "as recorded"."""

    robot: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    rate_hz: float
    unit: str

    def meta(self) -> dict[str, Any]:
        """The fields of ``policies.manifest.BundleMeta`` that describe the robot."""
        return {
            "robot": self.robot,
            "state_names": self.state_names,
            "action_names": self.action_names,
            "rate_hz": self.rate_hz,
            "action_convention": {"unit": self.unit},
        }


def describe(store: ReadableStore, episodes: Sequence[str]) -> RobotDescription:
    """The description the episodes share. Raises DataError naming the first that differs."""
    if not episodes:
        raise DataError("the selection holds no episode", "check the SQL condition")
    first = _of(store.read(episodes[0]))
    for name in episodes[1:]:
        other = _of(store.read(name))
        if other != first:
            what = next(f for f in first.__slots__ if getattr(first, f) != getattr(other, f))
            raise DataError(
                f"episode {name} has {what} {getattr(other, what)}, {episodes[0]} has {getattr(first, what)}",
                "select episodes of one robot",
            )
    return first


def _of(episode: Episode) -> RobotDescription:
    state, action = _names(episode, "observation.state"), _names(episode, "action")
    streams = episode.meta.streams
    in_rad = all(streams[name].unit == "rad" for name in ("observation.state", "action"))
    koch = in_rad and state == KOCH_FEATURES == action
    robot = "koch" if koch else _plain(str(episode.meta.provenance.get("robot") or "unknown"))
    return RobotDescription(robot, state, action, episode.meta.fps, "rad" if in_rad else "as recorded")


def _names(episode: Episode, stream: str) -> tuple[str, ...]:
    described = episode.meta.streams.get(stream)
    if described is None:
        raise DataError(f"episode {episode.id} has no stream {stream}", "leave it out")
    count = described.shape[0] if described.shape else 1
    if len(described.names) == count:
        return described.names
    return tuple(f"{stream.rpartition('.')[2]}_{i}" for i in range(count))


def _plain(name: str) -> str:
    """As the manifest wants names: letters, digits, dots, dashes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:128] or "unknown"
