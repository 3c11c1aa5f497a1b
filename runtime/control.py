"""One arm's decisions at 30 Hz: an observation and a mode in, a waypoint and what to record out.

No I/O and no clock of its own, so that the real-time service and the lockstep simulation run
the very same code. The servo core (``runtime.servo``) has the last word on what reaches a motor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from runtime.chunks import BLEND, SLACK, ChunkPlayer, Player
from runtime.ensemble import EnsemblePlayer
from runtime.monitors import MonitorBank, MonitorRow
from runtime.nouns import ActionChunk, Flag, Observation, Source, Vector, Waypoint

NS_PER_S = 1_000_000_000


class ControlConfig(BaseModel):
    """Rates and limits of the control loop."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_hz: float = Field(default=30.0, ge=5.0, le=100.0)
    execute: int = Field(default=16, ge=1, le=100, description="actions used of each chunk")
    blend: int = Field(default=BLEND, ge=0, le=32, description="ticks over which two chunks are blended")
    slack: int = Field(
        default=SLACK,
        ge=1,
        le=100,
        description="rows played while an answer is due; longer waits slow the arm",
    )
    ensemble: float | None = Field(
        default=None, ge=-1.0, le=1.0, description="ask in every tick and average with this decay (ACT: 0.01)"
    )
    expire_ms: float = Field(default=200.0, ge=20.0, le=2000.0, description="life past the target time")
    task_limit_s: float = Field(
        default=8.0, ge=0.5, le=3600.0, description="a policy that has not done its task by then is flagged"
    )
    hold_on_doubt: bool = Field(
        default=False, description="hold and wait for a person when the monitors ask for help"
    )

    @property
    def period_ns(self) -> int:
        """Length of a tick in nanoseconds."""
        return round(NS_PER_S / self.rate_hz)

    @property
    def task_limit_ticks(self) -> int:
        """The task's time limit in ticks."""
        return round(self.task_limit_s * self.rate_hz)


@dataclass(frozen=True, slots=True)
class TickResult:
    """What one tick decided.

    ``waypoint`` is None when nothing is asked of the arm (it holds). ``asked`` is the goal asked
    for, rad (6,): the waypoint's position, or the last goal while holding. ``flags`` are those
    that began with this tick; their final spans come from ``MonitorBank.finish``.
    """

    waypoint: Waypoint | None
    source: Source
    asked: Vector
    flags: list[Flag]


def make_player(config: ControlConfig) -> Player:
    """The player that a configuration asks for."""
    if config.ensemble is not None:
        return EnsemblePlayer(config.ensemble, blend=config.blend)
    return ChunkPlayer(config.execute, config.blend, config.slack)


class Controller:
    """Chooses each tick's goal from its source and lets the monitors watch."""

    def __init__(self, config: ControlConfig, bank: MonitorBank, player: Player | None = None) -> None:
        self.config = config
        self.bank = bank
        self.player: Player = player or make_player(config)
        self._seq = 0
        self._chunk_error: float | None = None
        self._chunk: ActionChunk | None = None

    def begin(self) -> None:
        """Forget chunks and monitor history: a new episode, or a new source, starts."""
        self.player.reset()
        self.bank.reset()
        self._chunk = None
        self._chunk_error = None

    def wants_chunk(self, tick: int) -> bool:
        """Whether the next chunk should be asked for from this tick's observation."""
        return self.player.wants(tick)

    def expect(self, round_trip_s: float | None) -> None:
        """How long a chunk takes to come, s (None: not known yet): the next one is asked for in good time."""
        ticks = (
            0 if round_trip_s is None else math.ceil(round_trip_s * NS_PER_S / self.config.period_ns - 0.01)
        )
        self.player.expect(ticks)

    def offer(self, chunk: ActionChunk, tick: int) -> bool:
        """Hand in a chunk that arrived; whether it is used. Monitored: how it disagrees with the old one."""
        if not self.player.offer(chunk, tick):
            return False
        self._chunk = chunk
        self._chunk_error = self.player.overlap_error
        return True

    def tick(
        self,
        observation: Observation,
        source: Source,
        *,
        target: Vector | None = None,
        bus_lost: int = 0,
        task_success: bool | None = None,
    ) -> TickResult:
        """Decide this tick.

        ``target`` is the goal of sources that bring their own (teleoperation, intervention,
        replay), rad (6,); the policy's comes from the chunk player. ``bus_lost`` is the bus's running
        count of lost replies; ``task_success`` is the judge's word where there is one.
        """
        wanted = self.player.action(observation.tick) if source is Source.POLICY else target
        waypoint = None if wanted is None else self._waypoint(observation, wanted, source)
        asked = observation.goal if wanted is None else np.asarray(wanted, dtype=np.float64)
        flags: list[Flag] = []
        if source is not Source.NONE:
            flags = self.bank.update(self._row(observation, asked, source, bus_lost, task_success))
        return TickResult(waypoint, source if waypoint is not None else Source.NONE, asked, flags)

    def _waypoint(self, observation: Observation, wanted: Vector, source: Source) -> Waypoint:
        self._seq += 1
        target_ns = observation.t_ns + self.config.period_ns
        return Waypoint(
            position=np.asarray(wanted, dtype=np.float64),
            target_ns=target_ns,
            expires_ns=target_ns + round(self.config.expire_ms * 1e6),
            source=source,
            seq=self._seq,
        )

    def _row(
        self,
        observation: Observation,
        asked: Vector,
        source: Source,
        bus_lost: int,
        task_success: bool | None,
    ) -> MonitorRow:
        chunk, error = self._chunk, self._chunk_error
        self._chunk, self._chunk_error = None, None
        return MonitorRow(
            tick=observation.tick,
            t_ns=observation.t_ns,
            joints=observation.joints,
            goal=observation.goal,
            asked=asked,
            source=source,
            chunk_error=error,
            novelty=None if chunk is None else self.bank.novelty(chunk.features),
            bus_lost=bus_lost,
            task_success=task_success,
        )
