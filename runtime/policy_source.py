"""What a robot is told of its policy server, and the client of it, or of two, that follows."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from protos.access.tls import identity_in
from runtime.exclusive import require_free_socket
from runtime.fallback import FallbackConfig, FallbackServer
from runtime.pictures import Choice
from runtime.policy_client import PolicyClient
from runtime.policy_switch import PolicySwitch


class PolicyConfig(BaseModel):
    """Where action chunks come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(default="unix:/run/ratchet/policy.sock", min_length=1)
    identity: Path | None = Field(default=None, description="folder that `ratchet keys issue` made")
    timeout_s: float = Field(default=1.0, gt=0.0, le=5.0)
    pictures: Choice = Field(default="auto", description="raw, jpeg, or what the way there is faster with")
    fallback: FallbackConfig | None = Field(
        default=None, description="the robot's own, when that one is gone"
    )


def policy_source(config: PolicyConfig, robot: str, run_dir: Path) -> PolicySwitch:
    """The switch, with the robot's own server started below ``run_dir`` if one is configured.

    Raises CredentialsError when the identity's files cannot be used, InUseError or FallbackError when the
    fallback cannot be started.
    """
    identity = None if config.identity is None else identity_in(config.identity)
    remote = PolicyClient(config.address, config.timeout_s, robot, config.pictures, identity)
    if config.fallback is None:
        return PolicySwitch(remote)
    server = FallbackServer(config.fallback, run_dir)
    require_free_socket(server.address)
    server.start()
    return PolicySwitch(remote, PolicyClient(server.address, config.timeout_s, robot), server)
