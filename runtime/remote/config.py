"""Configuration of the gRPC door: where it listens, who may come in, how long things stay fresh."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RoleName = Literal["look", "drive", "deploy"]


class TlsFiles(BaseModel):
    """PEM files of one side of mutual TLS: own certificate and key, and the CA that signs the others'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path
    key: Path
    ca: Path


class RemoteConfig(BaseModel):
    """The gRPC door.

    ``address`` is ``unix:/path`` or ``host:port`` (port 0 lets the system choose). Exactly one of
    ``tls`` and ``plaintext`` is set; plaintext is for unix sockets and loopback only, and gives
    every caller ``plaintext_role``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(default="unix:/run/ratchet/control.sock", min_length=3, max_length=200)
    tls: TlsFiles | None = None
    plaintext: bool = False
    plaintext_role: RoleName = "deploy"
    trust_domain: str = Field(default="ratchet", pattern=r"^[a-z0-9.-]{1,64}$")
    lease_window_s: float = Field(default=2.0, ge=0.3, le=2.0)
    teleop_stale_s: float = Field(default=0.15, ge=0.03, le=0.2)
    max_deadline_s: float = Field(default=60.0, ge=1.0, le=60.0)
    max_message_bytes: int = Field(default=64 * 1024, ge=4096, le=1024 * 1024)
    telemetry_max_hz: float = Field(default=30.0, ge=1.0, le=60.0)
    telemetry_max_streams: int = Field(default=8, ge=1, le=32)
    reflection: bool = True

    @model_validator(mode="after")
    def _encrypted_or_local(self) -> Self:
        if self.plaintext == (self.tls is not None):
            raise ValueError("set either [remote.tls] files or plaintext = true, not both and not neither")
        if self.plaintext and not is_local(self.address):
            raise ValueError(
                f"plaintext on {self.address} would let the network drive the arm; "
                "use unix:/path or 127.0.0.1:port, or configure [remote.tls]"
            )
        return self


def is_local(address: str) -> bool:
    """True for a unix socket or a loopback address, the only places where plaintext is allowed."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
