"""Configuration of the policy server: frozen, bounded, an unknown key is an error."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from policy_server.claim import MAX_PRIORITY
from policy_server.errors import ConfigError
from policy_server.probation import ProbationConfig
from protos.access.door import AccessConfig
from protos.configuration import first_problem

Backend = Literal["onnx", "onnx-int8", "torch", "compile"]
BACKENDS: tuple[Backend, ...] = ("onnx", "onnx-int8", "torch", "compile")

_HOST_PORT = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(\d{1,5})")


class ServerConfig(AccessConfig):
    """Where the server listens, to whom, what it may load, and what it bounds.

    A unix socket needs nothing more: the file's permissions say who may connect. A TCP address
    needs ``tls`` files, or, on loopback only, ``plaintext = true``.
    """

    address: str = Field(description="unix:/path/to.sock or host:port")
    trust: Path = Field(description="directory of the public keys whose bundles are accepted")
    bundle: Path | None = Field(default=None, description="bundle directory to serve from the start")
    backend: Backend = "onnx"
    threads: int = Field(default=1, ge=1, le=64, description="threads of one inference")
    allowed_roots: tuple[Path, ...] = Field(
        default=(), description="directories bundles may be loaded from; empty: the one holding `bundle`"
    )
    allow_uncalibrated: bool = Field(
        default=False,
        description="let a bundle without monitor thresholds replace one that has them",
    )
    isolation: Literal["process", "thread"] = Field(
        default="process",
        description="each bundle in a process of its own, or all in the server's: less memory, but a load "
        "then delays requests by up to a fifth of a second",
    )
    max_resident: int = Field(default=3, ge=2, le=16, description="bundles kept in memory")
    max_waiting: int = Field(default=32, ge=1, le=1024, description="requests waiting for their turn")
    max_waiting_mib: int = Field(
        default=256, ge=1, le=16384, description="of requests waiting or being computed, their JPEGs decoded"
    )
    max_clients: int = Field(default=64, ge=1, le=1024, description="sessions known at a time")
    max_in_flight: int = Field(
        default=4, ge=1, le=64, description="requests of one session, waiting or being computed"
    )
    max_batch: int = Field(
        default=8, ge=1, le=64, description="observations computed together, where that pays; 1: never"
    )
    max_linger_ms: float = Field(
        default=4.0, ge=0.0, le=100.0, description="a batch that pays waits at most so long to fill"
    )
    max_lanes: int = Field(default=32, ge=0, le=256, description="clients with shared memory for pictures")
    max_lane_mib: int = Field(default=512, ge=1, le=16384, description="of shared memory in all")
    idle_s: float = Field(
        default=60.0, gt=0.0, le=3600.0, description="after which an unused stream or shared memory is ended"
    )
    max_message_mib: int = Field(default=16, ge=1, le=256)
    default_deadline_s: float = Field(
        default=2.0, gt=0.0, le=60.0, description="of a request that came with none, and within a stream"
    )
    warm_runs: int = Field(default=3, ge=1, le=100)
    max_warm_ms: float | None = Field(
        default=None, gt=0.0, description="refuse a bundle whose median warm run takes longer"
    )
    nice: int = Field(
        default=5, ge=0, le=19, description="behind the robot's own processes, ahead of the learner"
    )
    priority: int = Field(
        default=0,
        ge=0,
        le=MAX_PRIORITY,
        description="real-time priority (SCHED_FIFO) of requests and inference, for a policy that is asked "
        "in every tick: below the control loop, ahead of everything else on its cores; 0: none",
    )
    stop_grace_s: float = Field(default=2.0, ge=0.0, le=60.0)
    reflection: bool = True
    state: Path | None = Field(
        default=None,
        description="file that remembers over a restart what serves, who is on probation and who was rolled "
        "back; none: nothing is remembered",
    )
    resume: bool = Field(
        default=True,
        description="after a restart with the same `bundle`, serve what served last; else `bundle` itself",
    )
    probation: ProbationConfig = ProbationConfig()
    shadow_s: float = Field(default=60.0, gt=0.0, le=86_400.0, description="a shadow ends after this time")

    @field_validator("address")
    @classmethod
    def _well_formed(cls, address: str) -> str:
        if address.startswith("unix:") and len(address) > len("unix:"):
            path = address.removeprefix("unix:").removeprefix("//")
            if len(path.encode()) > 107:  # sun_path, unix(7)
                raise ValueError(f"socket path {path} is longer than 107 bytes; use a shorter one")
            return address
        match = _HOST_PORT.fullmatch(address)
        if match is None or int(match[1]) > 65535:
            raise ValueError(f"address {address!r} is neither unix:/path nor host:port")
        return address

    @model_validator(mode="before")
    @classmethod
    def _a_unix_socket_is_plain(cls, raw: object) -> object:
        if not isinstance(raw, dict) or raw.get("tls") is not None:
            return raw
        unix = str(raw.get("address", "")).startswith("unix:")
        return {**raw, "plaintext": True} if unix and "plaintext" not in raw else raw

    @model_validator(mode="after")
    def _encrypted_or_local(self) -> Self:
        self.check_address(self.address, "ask for actions and load bundles")
        return self

    @model_validator(mode="after")
    def _priority_needs_processes(self) -> Self:
        if self.priority and self.isolation == "thread":
            raise ValueError('priority needs isolation = "process": a load must not share it')
        return self

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_waiting_mib < self.max_message_mib:
            raise ValueError(
                f"max_waiting_mib = {self.max_waiting_mib} has no room for one message of "
                f"max_message_mib = {self.max_message_mib}"
            )
        return self

    @model_validator(mode="after")
    def _something_can_be_loaded(self) -> Self:
        if self.bundle is None and not self.allowed_roots:
            raise ValueError("neither bundle nor allowed_roots is given: nothing could ever be loaded")
        return self

    @property
    def roots(self) -> tuple[Path, ...]:
        """The directories bundles may come from, links resolved."""
        roots = self.allowed_roots
        if not roots and self.bundle is not None:
            roots = (self.bundle.resolve().parent,)
        return tuple(root.resolve() for root in roots)

    @property
    def socket_path(self) -> Path | None:
        """The unix socket's path, or None on TCP."""
        if not self.address.startswith("unix:"):
            return None
        return Path(self.address.removeprefix("unix:").removeprefix("//"))


def load_config(path: Path, **overrides: object) -> ServerConfig:
    """Read a TOML file; ``overrides`` that are not None replace its keys. Raises ConfigError."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return make_config({**raw, **{k: v for k, v in overrides.items() if v is not None}}, str(path))


def make_config(raw: dict[str, object], where: str) -> ServerConfig:
    """A checked configuration; raises ConfigError naming the first wrong key."""
    try:
        return ServerConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(ServerConfig, error)}") from error
