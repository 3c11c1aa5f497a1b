"""How patient a bus is, and what it counts: the configuration and the counters of ``ArmBus``."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from hal.dynamixel.reading import Method


class BusConfig(BaseModel):
    """``margin_ms``: how long past its wire time a reply is waited for. ``retries``: how often the motors
    that are missing are asked again in the same cycle. ``max_coast``: cycles a motor may stay silent.
    ``attempts``: tries of a set-up transaction. ``read_method``: how the state is read; None times every one
    at open and keeps the fastest that works.

    A lost reply costs its wire time and the margin, and is made good in the same cycle where a retry brings
    it. Adapters deliver within 1 ms of the last byte; what is later than the margin still counts if it comes
    while a retry is waited for. Four cycles in which nothing came, with two retries each, are 35 ms at
    1 Mbaud: inside the servos' watchdog of 100 ms. On a computer that keeps this process, or the kernel's
    worker behind the port, from running for longer, that is a fault; it wants real-time priority.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin_ms: float = Field(default=1.5, ge=0.2, le=50.0)
    retries: int = Field(default=2, ge=0, le=4)
    max_coast: int = Field(default=3, ge=0, le=30)
    attempts: int = Field(default=3, ge=1, le=10)
    read_method: Method | None = None


@dataclass(frozen=True, slots=True)
class MotorStats:
    """Counters of one motor since the bus was made.

    ``lost``: cycles without a good reply. ``crc_errors``: replies with a wrong CRC. ``timeouts``: replies
    that did not come within wire time and margin. ``retries``: how often it was asked again in the same
    cycle, and ``recovered``: how often that brought its sample. ``stalls``: how often it was silent for two
    cycles or more. ``coasting``: how many cycles it is silent now.
    """

    joint: str
    lost: int
    crc_errors: int
    timeouts: int
    retries: int
    recovered: int
    stalls: int
    coasting: int


COUNTERS = ("lost", "crc_errors", "timeouts", "retries", "recovered", "stalls")
"""The rows of ``ArmBus.counters``."""


@dataclass(frozen=True, slots=True)
class BusStats:
    """Counters since the bus was made. ``lost``, ``crc_errors`` and ``retries`` sum over the motors and
    include set-up transactions, ``stale`` are replies to those that came too late, ``reconnects`` reopened
    ports, ``clipped`` goals beyond the calibrated range."""

    cycles: int
    lost: int
    crc_errors: int
    retries: int
    stale: int
    reconnects: int
    clipped: int
    method: str
    motors: tuple[MotorStats, ...]
