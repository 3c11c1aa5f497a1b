"""What the remote doors refuse, each with the gRPC status that says so.

The robot facade raises these too: the same one line then reaches a gRPC client as status
details and a fleet client as the result's detail.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

from runtime.errors import RuntimeFault

MAX_DETAIL_CHARS = 400


class RemoteError(RuntimeFault):
    """Base of what a remote door refuses on purpose; ``code`` is its gRPC status."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class RefusedError(RemoteError):
    """The robot is in a mode that does not allow this, or the request contradicts its state."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class BadRequestError(RemoteError):
    """A field is missing, malformed or out of bounds."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class UnavailableError(RemoteError):
    """Something the request needs (bus, policy server, store) does not answer at the moment."""

    code = grpc.StatusCode.UNAVAILABLE


class LeaseHeldError(RemoteError):
    """Somebody else has control."""

    code = grpc.StatusCode.ABORTED


class LeaseLostError(RemoteError):
    """The lease named in the request is not, or no longer, the one in force."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class TooManyError(RemoteError):
    """A bound on concurrent streams or sizes was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class RemoteConfigError(RemoteError):
    """The door cannot be opened as configured: missing certificate, address in use."""


def one_line(error: BaseException) -> str:
    """``error`` as a single bounded line, fit for status details."""
    return " ".join(str(error).split())[:MAX_DETAIL_CHARS]
