"""Snapshots to wire messages, and bounded checks of what comes in over the wire."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import get_args

import numpy as np

from hal.types import JOINTS, NUM_JOINTS
from protos.ratchet.v1 import robot_pb2 as pb
from runtime.bus_records import BusCounters
from runtime.nouns import Flag, Vector
from runtime.recorder import RecordingFigures
from runtime.remote.errors import BadRequestError
from runtime.remote.facade import EpisodeOutcome, EpisodeResult, LoopFigures, RequestedMode, RobotSnapshot

MAX_TEXT = 200
MAX_PATH = 1024
MAX_FLAGS = 32
_MODES = get_args(RequestedMode)
_OUTCOMES = get_args(EpisodeOutcome)


def text(value: str, field: str, *, limit: int = MAX_TEXT, required: bool = False) -> str:
    """``value`` if it is printable, one line and at most ``limit`` characters. Raises BadRequestError."""
    if len(value) > limit:
        raise BadRequestError(f"{field} has {len(value)} characters", f"at most {limit} are allowed")
    if not value.isprintable():
        raise BadRequestError(f"{field} contains control characters", "send one line of plain text")
    if required and not value.strip():
        raise BadRequestError(f"{field} is empty", "fill it in")
    return value


def requested_mode(value: str) -> RequestedMode:
    """The mode a caller may ask for. Raises BadRequestError."""
    for mode in _MODES:
        if value == mode:
            return mode
    raise BadRequestError(f"mode {value[:40]!r} cannot be asked for", f"use one of {', '.join(_MODES)}")


def episode_outcome(value: str) -> EpisodeOutcome:
    """The outcome a caller gives an episode. Raises BadRequestError."""
    for outcome in _OUTCOMES:
        if value == outcome:
            return outcome
    raise BadRequestError(f"outcome {value[:40]!r} is unknown", f"use one of {', '.join(_OUTCOMES)}")


def joint_goal(position: Sequence[float]) -> Vector:
    """Six finite joint goals, rad, float64 (6,). Raises BadRequestError."""
    if len(position) != NUM_JOINTS:
        raise BadRequestError(f"a joint goal has {len(position)} values", f"send {NUM_JOINTS}, in rad")
    goal = np.array(position, dtype=np.float64)
    if not np.isfinite(goal).all():
        raise BadRequestError("a joint goal contains NaN or infinity", "send finite values in rad")
    return goal


def robot_state(snapshot: RobotSnapshot, lease_holder: str) -> pb.RobotState:
    """``snapshot`` as a message; joint fields stay empty before the first sample."""
    message = pb.RobotState(
        robot=snapshot.robot,
        mode=snapshot.mode,
        reason=snapshot.reason,
        tick=snapshot.tick,
        episode=snapshot.episode,
        policy=snapshot.policy,
        lease_holder=lease_holder,
        loop=loop_stats(snapshot.loop),
        recent_flags=[flag_message(flag) for flag in snapshot.flags[-MAX_FLAGS:]],
        joints=JOINTS,
        recording=recording(snapshot.recording),
    )
    if snapshot.joints is not None:
        message.position.extend(snapshot.joints.position.tolist())
        message.velocity.extend(snapshot.joints.velocity.tolist())
        message.effort.extend(snapshot.joints.effort.tolist())
        message.temperature.extend(snapshot.joints.temperature.tolist())
        message.voltage.extend(snapshot.joints.voltage.tolist())
        message.hardware_error.extend(snapshot.joints.hardware_error.tolist())
    if snapshot.replies is not None:
        message.replies.extend(motor_replies(snapshot.replies))
    if snapshot.goal is not None:
        message.goal.extend(snapshot.goal.tolist())
    return message


def recording(figures: RecordingFigures) -> pb.Recording:
    """The recording's figures as a message."""
    return pb.Recording(
        task=figures.task,
        seconds=figures.seconds,
        frames=figures.frames,
        repeated=figures.repeated,
        dropped=figures.dropped,
        bytes_per_s=figures.bytes_per_s,
        disk_free=figures.disk_free,
        held_s=figures.held_s,
    )


def motor_replies(counters: BusCounters) -> list[pb.MotorReplies]:
    """Each motor's counters as a message, in joint order."""
    columns = {column.name: getattr(counters, column.name).tolist() for column in fields(counters)}
    return [
        pb.MotorReplies(**{name: counts[i] for name, counts in columns.items()}) for i in range(NUM_JOINTS)
    ]


def loop_stats(loop: LoopFigures) -> pb.LoopStats:
    """Loop figures as a message."""
    return pb.LoopStats(
        ticks=loop.ticks,
        missed=loop.missed,
        period_ms_p50=loop.period_ms_p50,
        period_ms_p99=loop.period_ms_p99,
        period_ms_max=loop.period_ms_max,
        lateness_ms_p99=loop.lateness_ms_p99,
        inference_ms_p50=loop.inference_ms_p50,
        inference_ms_p99=loop.inference_ms_p99,
        bus_cycles=loop.bus_cycles,
        bus_lost=loop.bus_lost,
        leader_hz=loop.leader_hz,
        leader_latency_ms_p50=loop.leader_latency_ms_p50,
        leader_latency_ms_p99=loop.leader_latency_ms_p99,
    )


def flag_message(flag: Flag) -> pb.FlagMessage:
    """A flag as a message; evidence that JSON cannot carry is sent as its text."""
    return pb.FlagMessage(
        kind=flag.kind,
        start_ns=flag.start_ns,
        end_ns=flag.end_ns,
        score=flag.score if math.isfinite(flag.score) else 0.0,
        evidence_json=json.dumps(flag.evidence, default=str)[:4096],
    )


def episode_reply(result: EpisodeResult) -> pb.EpisodeReply:
    """An episode's result as a message."""
    return pb.EpisodeReply(id=result.id, frames=result.frames, end_ms=result.end_ms, flags=result.flags)
