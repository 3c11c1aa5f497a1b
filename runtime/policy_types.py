"""What the policy client answers and raises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from protos.ratchet.v1 import policy_pb2 as pb
from runtime.errors import RuntimeFault


class PolicyClientError(RuntimeFault):
    """The policy server could not be asked, or its answer not be used."""


class PolicyUnavailableError(PolicyClientError):
    """The server is not there, is restarting, has no bundle, or has too many requests waiting."""


class PolicyTimeoutError(PolicyClientError):
    """No answer within the time given."""


class PolicyRefusedError(PolicyClientError):
    """The server refused a request or a bundle; the message is its reason."""


class PolicyReplyError(PolicyClientError):
    """The server failed, or answered with something that must not reach an arm."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A bundle that was loaded; times in ms. ``active`` when it serves already, in ``epoch``."""

    version: str
    verify_ms: float
    load_ms: float
    warm_ms: float
    active: bool
    epoch: int


@dataclass(frozen=True, slots=True)
class SwapResult:
    """The version that serves now, and the one that did before."""

    version: str
    previous: str
    epoch: int
    swap_ms: float


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """A resident bundle; ``manifest`` only when it was asked for."""

    version: str
    backend: str
    active: bool
    chunk: int
    cameras: tuple[str, ...]
    manifest: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What a policy server holds and how it has done since it started; the server's own epoch."""

    slots: tuple[SlotStatus, ...]
    epoch: int
    served: int
    failed: int
    dropped: int
    refused: int
    exec_ms_p50: float
    exec_ms_p99: float

    @property
    def active(self) -> SlotStatus | None:
        """The bundle that serves."""
        return next((slot for slot in self.slots if slot.active), None)

    @classmethod
    def from_message(cls, message: pb.StatusResponse) -> PolicyStatus:
        """Read a reply. Raises PolicyReplyError when a manifest in it is not JSON."""
        return cls(
            slots=tuple(_slot(slot) for slot in message.slots),
            epoch=message.epoch,
            served=message.served,
            failed=message.failed,
            dropped=message.dropped,
            refused=message.refused,
            exec_ms_p50=message.exec_ms_p50,
            exec_ms_p99=message.exec_ms_p99,
        )


def _slot(slot: pb.Slot) -> SlotStatus:
    manifest = None
    if slot.manifest_json:
        try:
            manifest = json.loads(slot.manifest_json)
        except ValueError as error:
            raise PolicyReplyError(f"the manifest of bundle {slot.version} is not JSON") from error
    return SlotStatus(slot.version, slot.backend, slot.active, slot.chunk, tuple(slot.cameras), manifest)
