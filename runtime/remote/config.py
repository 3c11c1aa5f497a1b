"""Configuration of the gRPC door: where it listens, who may come in, how long things stay fresh."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from protos.access.door import AccessConfig


class RemoteConfig(AccessConfig):
    """The gRPC door.

    ``address`` is ``unix:/path`` or ``host:port`` (port 0 lets the system choose).
    """

    address: str = Field(default="unix:/run/ratchet/control.sock", min_length=3, max_length=200)
    lease_window_s: float = Field(default=2.0, ge=0.3, le=2.0)
    teleop_stale_s: float = Field(default=0.15, ge=0.03, le=0.2)
    max_deadline_s: float = Field(default=60.0, ge=1.0, le=60.0)
    max_message_bytes: int = Field(default=64 * 1024, ge=4096, le=1024 * 1024)
    telemetry_max_hz: float = Field(default=30.0, ge=1.0, le=60.0)
    telemetry_max_streams: int = Field(default=8, ge=1, le=32)
    reflection: bool = True

    @model_validator(mode="after")
    def _encrypted_or_local(self) -> Self:
        self.check_address(self.address, "drive the arm")
        return self
