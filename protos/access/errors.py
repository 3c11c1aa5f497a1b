"""What a door refuses, each with the gRPC status that says so."""

from __future__ import annotations

from typing import ClassVar

import grpc


class AccessError(Exception):
    """Base of what a door refuses: one line, what is wrong and what to do about it."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class ForbiddenError(AccessError):
    """The caller's role does not include this method."""


class UnidentifiedError(AccessError):
    """The caller presented no usable identity, or one that has been revoked or is too old."""

    code = grpc.StatusCode.UNAUTHENTICATED


class MalformedError(AccessError):
    """The bytes sent are no message of the method's type."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class TooFastError(AccessError):
    """The caller calls more often than one caller may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DoorError(AccessError):
    """An address where callers were to knock cannot be had."""

    code = grpc.StatusCode.UNAVAILABLE


class CredentialsError(AccessError):
    """A certificate, key or token file is missing, unreadable or not what it should be."""

    code = grpc.StatusCode.FAILED_PRECONDITION
