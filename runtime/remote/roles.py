"""Who may call what: one table from method to the least role, default deny.

The role and name of a caller come from the URI in its client certificate,
``spiffe://<trust domain>/role/<role>/<name>``; nothing in a request can raise it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from runtime.remote.errors import ForbiddenError, UnidentifiedError


class Role(IntEnum):
    """Each role includes the ones below it."""

    LOOK = 0
    DRIVE = 1
    DEPLOY = 2


_CONTROL = "/ratchet.v1.RobotControl/"

METHOD_ROLES: Mapping[str, Role] = {
    _CONTROL + "GetState": Role.LOOK,
    _CONTROL + "StreamTelemetry": Role.LOOK,
    _CONTROL + "Stop": Role.LOOK,  # whoever may watch may stop
    _CONTROL + "EStop": Role.LOOK,
    _CONTROL + "AcquireControl": Role.DRIVE,
    _CONTROL + "Heartbeat": Role.DRIVE,
    _CONTROL + "ReleaseControl": Role.DRIVE,
    _CONTROL + "Enable": Role.DRIVE,
    _CONTROL + "ClearEStop": Role.DRIVE,
    _CONTROL + "SetMode": Role.DRIVE,
    _CONTROL + "StartEpisode": Role.DRIVE,
    _CONTROL + "EndEpisode": Role.DRIVE,
    _CONTROL + "KeepLast": Role.DRIVE,
    _CONTROL + "Teleop": Role.DRIVE,
    _CONTROL + "SetPolicy": Role.DEPLOY,
    "/grpc.health.v1.Health/Check": Role.LOOK,
    "/grpc.health.v1.Health/Watch": Role.LOOK,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.LOOK,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    role: Role


_IDENTITY = re.compile(r"spiffe://([a-z0-9.-]{1,64})/role/(look|drive|deploy)/([A-Za-z0-9._-]{1,64})")


def caller_from_uris(uris: Iterable[bytes], trust_domain: str) -> Caller:
    """The caller a certificate's URI names stand for.

    Raises UnidentifiedError unless there is exactly one and it is a role of ``trust_domain``.
    """
    names = list(uris)
    if len(names) != 1:
        raise UnidentifiedError(
            f"the client certificate carries {len(names)} URI names, one is needed",
            f"issue it with spiffe://{trust_domain}/role/<look|drive|deploy>/<name>",
        )
    match = _IDENTITY.fullmatch(names[0].decode("ascii", "replace"))
    if match is None or match[1] != trust_domain:
        raise UnidentifiedError(
            "the client certificate's URI name is no role of this robot",
            f"issue it with spiffe://{trust_domain}/role/<look|drive|deploy>/<name>",
        )
    return Caller(match[3], Role[match[2].upper()])


def authorise(caller: Caller, method: str) -> None:
    """Raise ForbiddenError unless ``caller``'s role includes ``method``; unknown methods are denied."""
    least = METHOD_ROLES.get(method)
    if least is None:
        raise ForbiddenError(f"no role includes {method}", "check the method name")
    if caller.role < least:
        raise ForbiddenError(
            f"{caller.name} has role {caller.role.name.lower()}, {method.rpartition('/')[2]} needs "
            f"{least.name.lower()}",
            "use a certificate with that role",
        )
