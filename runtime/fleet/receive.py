"""The checks a command passes, in their fixed order, before it is journalled.

retained → size → strict decode → audience → signature (and the key's role) → expiry → mode. The
first one that fails decides. What ``authenticate`` refuses is never journalled: nothing the sender
claims is believed. What ``admit`` refuses is: the command is authentic, and when it is delivered
again it must get the same answer even if the mode has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.access.roles import Role
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, CommandState, decode, verify
from runtime.fleet.operations import OPERATIONS, Operation
from runtime.fleet.topics import Topics
from runtime.remote.errors import BadRequestError, one_line
from runtime.remote.facade import Mode


class Refusal(Exception):  # noqa: N818 (a verdict, answered to the sender; not a fault of ours)
    """The command is not done; ``code`` names the rule that refused it."""

    def __init__(self, code: str, detail: str, state: CommandState = "REJECTED") -> None:
        self.code = code
        self.detail = detail
        self.state = state
        super().__init__(f"{code}: {detail}")


@dataclass(frozen=True, slots=True)
class _Key:
    public: Ed25519PublicKey
    role: Role


class Checks:
    """The rules of one robot. ``wall_ms`` is its own clock, Unix milliseconds."""

    def __init__(self, config: FleetConfig, topics: Topics, wall_ms: Callable[[], int]) -> None:
        self._config = config
        self._topics = topics
        self._wall_ms = wall_ms
        self._keys: Mapping[str, _Key] = {
            name: _Key(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public)), Role[key.role.upper()])
            for name, key in config.keys.items()
        }

    def authenticate(self, topic: str, payload: bytes, *, retained: bool) -> tuple[Command, Operation]:
        """Retained, size, decode, audience, signature. Raises Refusal."""
        if retained:
            raise Refusal("RETAINED", "a command must not be retained: it would be replayed as fresh intent")
        if len(payload) > self._config.max_command_bytes:
            raise Refusal("TOO_LARGE", f"{len(payload)} bytes, at most {self._config.max_command_bytes}")
        try:
            command = decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("MALFORMED", one_line(error)) from None
        if command.audience != self._topics.audience or topic != self._topics.command(command.op):
            raise Refusal("AUDIENCE", f"meant for {command.audience}, operation {command.op}")
        key = self._keys.get(command.key)
        if key is None or not verify(command, key.public):
            raise Refusal("SIGNATURE", f"no trusted key {command.key} made this signature")
        operation = OPERATIONS.get(command.op)
        if operation is None:
            raise Refusal("UNKNOWN_OP", f"this robot does not do {command.op}")
        if key.role < operation.role:
            raise Refusal("ROLE", f"{command.op} needs role {operation.role.name.lower()}")
        try:
            operation.check(command.args)
        except BadRequestError as error:
            raise Refusal("ARGUMENTS", one_line(error)) from None
        return command, operation

    def admit(self, command: Command, operation: Operation, mode: Mode | None, lease_holder: str) -> None:
        """Expiry and mode (None where the operation takes any). Raises Refusal."""
        self.check_expiry(command)
        if mode is not None and mode not in operation.modes:
            raise Refusal("MODE", f"{command.op} is not possible in mode {mode}")
        if operation.needs_free_control and lease_holder:
            raise Refusal("LEASE", f"control is held by {lease_holder}")

    def check_expiry(self, command: Command) -> None:
        """Raise Refusal when the command is too old, from the future, or lives too long."""
        now_ms = self._wall_ms()
        if now_ms >= command.expires:
            raise Refusal("EXPIRED", f"expired {(now_ms - command.expires) / 1e3:.1f} s ago", "EXPIRED")
        if command.issued > now_ms + self._config.max_clock_skew_s * 1e3:
            raise Refusal(
                "CLOCK", f"issued {(command.issued - now_ms) / 1e3:.1f} s in the future; set the clocks"
            )
        if command.expires - command.issued > self._config.max_lifetime_s * 1e3:
            raise Refusal("LIFETIME", f"a command may live for {self._config.max_lifetime_s:g} s at most")
