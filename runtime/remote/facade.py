"""The robot as the remote doors (gRPC, MQTT) see it.

The doors know nothing of loops, buses or stores: they hold one ``RobotFacade``, which the runtime
service implements. Every method raises a ``RemoteError`` subclass when it refuses (``RefusedError`` for
a mode that does not allow it, ``BadRequestError`` for arguments, ``UnavailableError`` for a part that does
not answer); ``HalError`` and other ``RuntimeFault``s may pass through and mean unavailable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from episodes.spec import Outcome
from hal.types import JointState
from runtime.bus_records import BusCounters
from runtime.nouns import Flag, Vector
from runtime.recorder import RecordingFigures

Mode = Literal["off", "ready", "teleop", "policy", "hold", "fault", "estop"]
RequestedMode = Literal["teleop", "policy", "hold"]
EpisodeOutcome = Literal["success", "failure", "unknown", "discard"]


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """Figures of the control loop and bus since start; milliseconds, counts.

    ``leader_hz`` is how many of the leader arm's samples become goals each second, ``leader_latency_ms``
    the time from its measurement to a goal that is its pose; 0 where no leader has driven.
    """

    ticks: int = 0
    missed: int = 0
    period_ms_p50: float = 0.0
    period_ms_p99: float = 0.0
    period_ms_max: float = 0.0
    lateness_ms_p99: float = 0.0
    inference_ms_p50: float = 0.0
    inference_ms_p99: float = 0.0
    bus_cycles: int = 0
    bus_lost: int = 0
    leader_hz: float = 0.0
    leader_latency_ms_p50: float = 0.0
    leader_latency_ms_p99: float = 0.0


@dataclass(frozen=True, slots=True)
class RobotSnapshot:
    """One consistent picture of the robot.

    ``joints`` is None before the first sample; ``goal`` is the last goal let through, rad (6,), or
    None; ``replies`` what went wrong with the motors' replies. ``episode`` and ``policy`` are empty when
    there is none. ``flags`` are the most recent ones, oldest first (at most a few dozen).
    """

    robot: str
    mode: Mode
    reason: str = ""
    tick: int = 0
    joints: JointState | None = None
    goal: Vector | None = None
    replies: BusCounters | None = None
    episode: str = ""
    policy: str = ""
    loop: LoopFigures = field(default_factory=LoopFigures)
    flags: tuple[Flag, ...] = ()
    recording: RecordingFigures = field(default_factory=RecordingFigures)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """An episode just started (``frames`` 0) or ended; ``end_ms`` is how long ending it blocked."""

    id: str
    frames: int = 0
    end_ms: float = 0.0
    flags: tuple[str, ...] = ()


class RobotFacade(Protocol):
    """What may be asked of a robot from outside its process.

    ``estop`` and ``stop`` must take effect before their first suspension point: they are called
    without any lock held and never wait for another request to finish.
    """

    async def state(self) -> RobotSnapshot:
        """The present state; cheap, callable at 30 Hz."""

    async def enable(self) -> None:
        """Energise: off → ready. Raises RefusedError in fault or estop."""

    async def stop(self, reason: str) -> None:
        """Stop moving and lower: any mode → off by way of hold and lowering. Never refused."""

    async def estop(self, reason: str) -> None:
        """Latch the emergency stop. Never refused, never queued."""

    async def clear_estop(self) -> None:
        """Unlatch the emergency stop: estop → off. Raises RefusedError in any other mode."""

    async def hold(self, reason: str) -> None:
        """Keep the present position: teleop or policy → hold; no change in any other mode."""

    async def set_mode(self, mode: RequestedMode) -> None:
        """Change who moves the arm. Raises RefusedError when not enabled."""

    async def set_policy(self, bundle: str, backend: str) -> str:
        """Load and activate a bundle (path on the policy server's host, or a version it has loaded).

        ``backend`` "" means the server's default. Returns the version now serving.
        """

    async def start_episode(self, task: str) -> EpisodeResult:
        """Begin recording. Raises RefusedError while one is running."""

    async def end_episode(self, outcome: EpisodeOutcome, reason: str) -> EpisodeResult:
        """End the running episode, or throw it away ("discard"). Raises RefusedError when there is none."""

    async def throw_away(self, episode: str) -> EpisodeResult:
        """Delete the episode that was the last to end. Raises RefusedError for any other."""

    async def keep_last(self, task: str, outcome: Outcome) -> EpisodeResult:
        """Make an episode of the last seconds. Raises RefusedError while one runs or when none are held."""

    async def teleop_goal(self, position: Vector, age_ns: int) -> None:
        """Take one remote joint goal: rad (6,), finite; it was ``age_ns`` old on arrival.

        Raises RefusedError unless the mode is teleop.
        """
