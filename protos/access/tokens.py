"""Tokens for people: a name, a role and an end, signed with the authority's ed25519 key.

``rt1.<payload>.<signature>``, both parts base64url without padding; the payload is JSON. A token is
worth nothing without the encrypted door it is shown at, and nothing after its end or once its id is
on the revocation list.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protos.access.errors import UnidentifiedError
from protos.access.roles import NAME, Caller, Role
from protos.access.tls import MAX_TOKEN_CHARS

_PREFIX = "rt1"
_SHAPE = re.compile(r"rt1\.([A-Za-z0-9_-]{1,700})\.([A-Za-z0-9_-]{86})")
_RENEW = "make a new one with `ratchet keys token NAME`"


class _Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
    name: Annotated[str, msgspec.Meta(pattern=f"^{NAME}$")]
    role: Annotated[str, msgspec.Meta(pattern=r"^(look|drive|deploy)$")]
    audience: Annotated[str, msgspec.Meta(max_length=64)]
    expires: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


@dataclass(frozen=True, slots=True)
class Token:
    """A token's text, and what is in it. ``expires`` is Unix seconds."""

    text: str
    id: str
    caller: Caller
    expires: int


def issue(key: Ed25519PrivateKey, trust_domain: str, name: str, role: Role, expires: int) -> Token:
    """A new token. Raises ValueError for a name that is none."""
    if re.fullmatch(NAME, name) is None:
        raise ValueError(f"name {name!r} has other characters than letters, digits, '.', '_' and '-'")
    payload = _Payload(secrets.token_hex(8), name, role.name.lower(), trust_domain, expires)
    body = msgspec.json.encode(payload)
    text = f"{_PREFIX}.{_encode(body)}.{_encode(key.sign(_signed(body)))}"
    return Token(text, payload.id, Caller(name, role), expires)


def verify(text: str, public: Ed25519PublicKey, trust_domain: str) -> Token:
    """The token that ``text`` is. Raises UnidentifiedError when it is none, is forged or has ended."""
    match = _SHAPE.fullmatch(text) if len(text) <= MAX_TOKEN_CHARS else None
    if match is None:
        raise UnidentifiedError("the token is malformed", _RENEW)
    try:
        body, signature = _decode(match[1]), _decode(match[2])
        public.verify(signature, _signed(body))
        payload = msgspec.json.decode(body, type=_Payload)
    except (binascii.Error, InvalidSignature, msgspec.MsgspecError):
        raise UnidentifiedError("the token was not signed by this site's authority", _RENEW) from None
    if payload.audience != trust_domain:
        raise UnidentifiedError(f"the token is for {payload.audience}, not for {trust_domain}", _RENEW)
    token = Token(text, payload.id, Caller(payload.name, Role[payload.role.upper()]), payload.expires)
    check_end(token)
    return token


def check_end(token: Token) -> None:
    """Raise UnidentifiedError when a token's time is over."""
    if token.expires <= time.time():
        raise UnidentifiedError(f"the token of {token.caller.name} has ended", _RENEW)


def _signed(body: bytes) -> bytes:
    # The prefix keeps a signature made for something else from passing as a token's.
    return b"ratchet token\0" + body


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
