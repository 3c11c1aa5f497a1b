"""What the robot tells the fleet about itself: the state snapshot and the telemetry summary."""

from __future__ import annotations

import dataclasses

import numpy as np

from runtime.remote.facade import RobotSnapshot


def change_key(snapshot: RobotSnapshot, lease_holder: str) -> object:
    """Equal for two snapshots between which nothing happened that a fleet view must show at once."""
    flags = tuple((flag.kind, flag.start_ns) for flag in snapshot.flags)
    return snapshot.mode, snapshot.reason, snapshot.episode, snapshot.policy, lease_holder, flags


def state_report(snapshot: RobotSnapshot, lease_holder: str, seq: int, ts_ms: int) -> dict[str, object]:
    """The retained snapshot. ``ts`` is the robot's Unix ms."""
    return {
        "seq": seq,
        "ts": ts_ms,
        "mode": snapshot.mode,
        "reason": snapshot.reason,
        "episode": snapshot.episode,
        "policy": snapshot.policy,
        "lease_holder": lease_holder,
        "flags": [{"kind": flag.kind, "score": flag.score} for flag in snapshot.flags],
    }


def summary_report(snapshot: RobotSnapshot, seq: int, ts_ms: int) -> dict[str, object]:
    """One line of telemetry: joints (rad, A or load fraction, °C, V) and the loop's figures."""
    report: dict[str, object] = {
        "seq": seq,
        "ts": ts_ms,
        "tick": snapshot.tick,
        "loop": dataclasses.asdict(snapshot.loop),
    }
    joints = snapshot.joints
    if joints is not None:
        report["position"] = _rounded(joints.position)
        report["effort"] = _rounded(joints.effort)
        report["temperature"] = _rounded(joints.temperature)
        report["voltage"] = _rounded(joints.voltage)
        report["hardware_error"] = joints.hardware_error.tolist()
        report["age_ms"] = _rounded(joints.age_ns / 1e6)
    return report


def _rounded(values: np.ndarray) -> list[float]:
    rounded: list[float] = np.round(values, 4).tolist()
    return rounded
