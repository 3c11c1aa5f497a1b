"""Errors of the policy server: one line each, and the gRPC status a caller sees."""

from __future__ import annotations

from typing import ClassVar

import grpc


class ServerError(Exception):
    """Anything the server refuses or fails at on purpose; ``str`` says what, where and what to do."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class ConfigError(ServerError):
    """The server cannot start as configured."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class RequestError(ServerError):
    """A request that does not fit the serving policy's manifest, or fits nothing at all."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class LaneError(ServerError):
    """A picture in shared memory that is not there, or changed while it was read."""

    status = grpc.StatusCode.ABORTED


class PeerError(ServerError):
    """Something that this client may not have, whoever it says it is."""

    status = grpc.StatusCode.PERMISSION_DENIED


class OverloadedError(ServerError):
    """More requests are waiting than may wait."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class ExpiredError(ServerError):
    """The request's deadline passed before its turn came."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class NothingServingError(ServerError):
    """No bundle is active yet."""

    status = grpc.StatusCode.UNAVAILABLE


class InferenceError(ServerError):
    """The policy answered with something that must not reach an arm."""

    status = grpc.StatusCode.INTERNAL


class RefusedBundleError(ServerError):
    """A bundle that must not be served; the one serving goes on."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class PathError(ServerError):
    """A bundle path outside the server's allowed roots."""

    status = grpc.StatusCode.PERMISSION_DENIED


class UnknownVersionError(ServerError):
    """A version that is not resident."""

    status = grpc.StatusCode.NOT_FOUND


class RollbackError(ServerError):
    """No bundle served before the present one, or the last swap was rolled back already."""

    status = grpc.StatusCode.FAILED_PRECONDITION
