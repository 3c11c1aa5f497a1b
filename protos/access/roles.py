"""Roles, and which role a method needs: a table for each service, what is not in it is denied.

The role and name of a caller come from the URI in its client certificate,
``spiffe://<trust domain>/role/<role>/<name>``, or from a signed token; nothing in a request can
raise it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from protos.access.errors import ForbiddenError, UnidentifiedError

RoleName = Literal["look", "drive", "deploy"]


class Role(IntEnum):
    """Each role includes the ones below it."""

    LOOK = 0
    DRIVE = 1
    DEPLOY = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    role: Role


#: Health and reflection, which both services offer beside their own methods.
COMMON_ROLES: Mapping[str, Role] = {
    "/grpc.health.v1.Health/Check": Role.LOOK,
    "/grpc.health.v1.Health/Watch": Role.LOOK,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.LOOK,
}

#: What a caller's name may look like, in certificates and in tokens.
NAME = r"[A-Za-z0-9._-]{1,64}"
_IDENTITY = re.compile(rf"spiffe://([a-z0-9.-]{{1,64}})/role/(look|drive|deploy)/({NAME})")


def identity_uri(trust_domain: str, role: Role, name: str) -> str:
    """The URI a certificate carries for a caller."""
    return f"spiffe://{trust_domain}/role/{role.name.lower()}/{name}"


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
            f"the client certificate's URI name is no role of {trust_domain}",
            f"issue it with spiffe://{trust_domain}/role/<look|drive|deploy>/<name>",
        )
    return Caller(match[3], Role[match[2].upper()])


def authorise(caller: Caller, method: str, table: Mapping[str, Role]) -> None:
    """Raise ForbiddenError unless ``caller``'s role includes ``method``; unknown methods are denied."""
    least = table.get(method)
    if least is None:
        raise ForbiddenError(f"no role includes {method}", "check the method name")
    if caller.role < least:
        raise ForbiddenError(
            f"{caller.name} has role {caller.role.name.lower()}, {method.rpartition('/')[2]} needs "
            f"{least.name.lower()}",
            "ask with an identity that has that role",
        )
