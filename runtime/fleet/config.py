"""Configuration of the fleet agent. The robot's id and site come from the robot's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protos.access.roles import RoleName
from protos.access.tls import TlsFiles, is_local


class FleetKey(BaseModel):
    """Somebody who may command the robot: an ed25519 public key (64 hex digits) and its role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: RoleName = "look"


class FleetConfig(BaseModel):
    """The fleet agent: broker, keys of those who may command, and its clocks and bounds.

    ``keys`` maps a key id to a public key. Plaintext is for a loopback broker only, and only when
    asked for. ``journal`` is a SQLite file that survives restarts: commands, results, session.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    port: int = Field(default=8883, ge=1, le=65535)
    tls: TlsFiles | None = None
    plaintext: bool = False
    username: str | None = Field(default=None, max_length=128)
    password_file: Path | None = None
    journal: Path = Path("/var/lib/ratchet/fleet.db")
    keys: dict[str, FleetKey] = Field(default_factory=dict, max_length=64)

    keepalive_s: int = Field(default=10, ge=2, le=120)
    connect_timeout_s: float = Field(default=5.0, gt=0.0, le=30.0)
    session_expiry_s: int = Field(default=3600, ge=0, le=86_400)
    will_delay_s: int = Field(default=5, ge=0, le=60)
    backoff_min_s: float = Field(default=0.5, ge=0.01, le=10.0)
    backoff_max_s: float = Field(default=30.0, ge=0.1, le=300.0)

    state_poll_s: float = Field(default=0.2, ge=0.02, le=5.0)
    state_period_s: float = Field(default=10.0, ge=0.1, le=10.0)
    telemetry_period_s: float = Field(default=1.0, ge=0.1, le=60.0)

    max_command_bytes: int = Field(default=16 * 1024, ge=1024, le=64 * 1024)
    max_lifetime_s: float = Field(default=300.0, ge=1.0, le=3600.0)
    max_clock_skew_s: float = Field(default=5.0, ge=0.0, le=60.0)
    command_timeout_s: float = Field(default=60.0, ge=0.1, le=600.0)
    queue_length: int = Field(default=16, ge=1, le=64)
    outbox_rows: int = Field(default=10_000, ge=100, le=1_000_000)
    remember_s: float = Field(default=86_400.0, ge=60.0, le=30 * 86_400.0)

    @model_validator(mode="after")
    def _encrypted_or_local(self) -> Self:
        if self.plaintext == (self.tls is not None):
            raise ValueError("set either [fleet.tls] files or plaintext = true, not both and not neither")
        if self.plaintext and not is_local(f"{self.host}:{self.port}"):
            raise ValueError(f"plaintext to {self.host} would expose the fleet; configure [fleet.tls]")
        if self.backoff_max_s < self.backoff_min_s:
            raise ValueError("backoff_max_s is below backoff_min_s")
        if self.remember_s < 2 * self.max_lifetime_s:
            raise ValueError("remember_s must be at least twice max_lifetime_s, or a replay could run twice")
        return self
