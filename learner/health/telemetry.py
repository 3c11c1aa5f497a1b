"""What a health model reads of an episode: joint telemetry at the control rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import savgol_filter

from episodes.reader import Episode
from learner.errors import HealthError

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_STREAMS = ("observation.state", "observation.effort", "observation.temperature", "action")
_WINDOW = 7  # ticks; a minimum-jerk stretch at 30 Hz is well described by a parabola that long
_MIN_TICKS = 3 * _WINDOW
# A gripper that rests this far from its goal (rad) is holding something.
_LOADED_RAD = 0.06
_RESTING_RAD_S = 0.10


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One episode, n ticks, J joints, the gripper last; all float64 (n, J).

    ``position`` and ``goal`` rad, ``effort`` A or load fraction, ``temperature`` °C; ``fps`` Hz.
    ``goal`` is what was in force when the row was measured.
    """

    position: F64
    effort: F64
    temperature: F64
    goal: F64
    fps: float
    episode: str = ""


@dataclass(frozen=True, slots=True)
class Motion:
    """Telemetry smoothed and differentiated: ``q`` rad, ``qd`` rad/s, ``qdd`` rad/s², ``effort``, ``lag``.

    All (n, J); ``lag`` rad is the goal less the position. ``free`` bool (n,): the gripper holds nothing.
    """

    q: F64
    qd: F64
    qdd: F64
    effort: F64
    lag: F64
    free: Mask


def read_telemetry(episode: Episode) -> Telemetry:
    """Telemetry of a stored episode. Raises HealthError when a stream is missing or not finite."""
    missing = [name for name in _STREAMS if name not in episode.streams]
    if missing:
        raise HealthError(f"episode {episode.id} has no stream {missing[0]}", "record it with telemetry")
    state, effort, temperature, action = (
        np.asarray(episode.streams[name].values, np.float64) for name in _STREAMS
    )
    if not state.shape == effort.shape == temperature.shape == action.shape:
        raise HealthError(f"episode {episode.id}: telemetry streams differ in shape", "leave it out")
    # The action of a tick is decided after its state was measured: the goal then was the one before.
    goal = np.concatenate([action[:1], action[:-1]])
    return Telemetry(state, effort, temperature, goal, episode.meta.fps, episode.id)


def motion(t: Telemetry) -> Motion:
    """Smoothed motion: local parabolas over seven ticks (Savitzky & Golay 1964), which tame the
    encoder's and the current's quantisation. Raises HealthError for short or broken telemetry."""
    if len(t.position) < _MIN_TICKS:
        raise HealthError(f"episode {t.episode} has {len(t.position)} ticks, {_MIN_TICKS} are needed")
    arrays = (t.position, t.effort, t.temperature, t.goal)
    if any(a.shape != t.position.shape or not np.isfinite(a).all() for a in arrays):
        raise HealthError(f"episode {t.episode} has broken telemetry", "leave it out")

    def smooth(values: F64, order: int) -> F64:
        out: F64 = savgol_filter(values, _WINDOW, 2, deriv=order, delta=1.0 / t.fps, axis=0, mode="interp")
        return out

    qd = smooth(t.position, 1)
    lag = smooth(t.goal - t.position, 0)
    loaded = (np.abs(lag[:, -1]) > _LOADED_RAD) & (np.abs(qd[:, -1]) < _RESTING_RAD_S)
    return Motion(smooth(t.position, 0), qd, smooth(t.position, 2), smooth(t.effort, 0), lag, ~loaded)
