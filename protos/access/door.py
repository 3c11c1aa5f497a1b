"""Who is at the door: identity from certificate or token, then role, then pace."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from protos.access import tokens
from protos.access.attempts import FailedAttempts, origin_of
from protos.access.call import CALLER
from protos.access.errors import CredentialsError, DoorError, UnidentifiedError
from protos.access.limits import RateLimit
from protos.access.revoked import RevokedList
from protos.access.roles import Caller, Role, RoleName, authorise, caller_from_uris
from protos.access.tls import TlsFiles, is_local, people_credentials, server_credentials

_MAX_KEY_BYTES = 4096
_MAX_KNOWN = 256


class PeopleDoor(BaseModel):
    """A second address for people who show a token instead of a certificate; always encrypted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(min_length=3, max_length=200, description="host:port")
    tokens: Path = Field(description="public key of the authority's tokens, tokens.pub")


class AccessConfig(BaseModel):
    """How callers prove who they are, and how often each may call.

    Exactly one of ``tls`` and ``plaintext`` is set; plaintext is for unix sockets and loopback only,
    and gives every caller ``plaintext_role``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tls: TlsFiles | None = None
    plaintext: bool = False
    plaintext_role: RoleName = "deploy"
    trust_domain: str = Field(default="ratchet", pattern=r"^[a-z0-9.-]{1,64}$")
    people: PeopleDoor | None = None
    revoked: Path | None = Field(default=None, description="the authority's revocation list")
    calls_per_s: float = Field(default=500.0, ge=1.0, le=1e6, description="of one caller, on average")
    calls_burst: float = Field(default=1000.0, ge=1.0, le=1e6)
    failures_per_s: float = Field(
        default=2.0, gt=0.0, le=1e6, description="attempts to identify that fail, from one address"
    )
    failures_burst: float = Field(default=20.0, ge=1.0, le=1e6)
    failures_total_per_s: float = Field(default=100.0, gt=0.0, le=1e6, description="from all addresses")

    @model_validator(mode="after")
    def _people_are_encrypted(self) -> Self:
        if self.people is not None and self.tls is None:
            raise ValueError("people with tokens need [tls] files: a token must not travel in the open")
        return self

    def check_address(self, address: str, what: str) -> None:
        """Raise ValueError unless ``address`` is encrypted, or local and plaintext by choice."""
        if self.plaintext == (self.tls is not None):
            raise ValueError("set either tls files or plaintext = true, not both and not neither")
        if self.plaintext and not is_local(address):
            raise ValueError(
                f"plaintext on {address} would let the network {what}; "
                "use unix:/path or 127.0.0.1:port, or configure tls (`ratchet keys init` makes the files)"
            )


class Context(Protocol):
    """What the doorkeeper needs of gRPC's ServicerContext."""

    def auth_context(self) -> Mapping[str, Any]: ...

    def invocation_metadata(self) -> Any: ...

    def peer(self) -> str: ...


class Doorkeeper:
    """Identifies callers and decides what they may call. Raises CredentialsError for unusable files."""

    def __init__(self, config: AccessConfig, table: Mapping[str, Role]) -> None:
        self._config = config
        self._table = table
        self._public = None if config.people is None else read_token_key(config.people.tokens)
        self._revoked = RevokedList(config.revoked)
        self._revoked.load()
        self._known: OrderedDict[str, tokens.Token] = OrderedDict()
        self.limit = RateLimit(config.calls_per_s, config.calls_burst)
        self.failures = FailedAttempts(
            config.failures_per_s, config.failures_burst, config.failures_total_per_s
        )

    def admit(self, method: str, context: Context, *, counted: bool = True) -> Caller:
        """Who calls; raises AccessError unless this caller may call ``method`` now.

        ``counted`` is False for calls whose pace is never limited, such as stopping: those are verified
        also where attempts have failed too often, for whoever has to stop an arm may be among them.
        """
        caller = self.caller(context, paced=counted)
        authorise(caller, method, self._table)
        # Callers on this machine share one name: a pace for all of them would be nobody's.
        if counted and not self._config.plaintext:
            self.limit.take(caller.name)
        CALLER.set(caller)
        return caller

    def caller(self, context: Context, *, paced: bool = True) -> Caller:
        """Who is calling. Raises UnidentifiedError for anybody without a usable identity, and, where
        ``paced``, TooFastError without looking further while attempts from there fail too often."""
        config = self._config
        if config.plaintext:
            return Caller("local", Role[config.plaintext_role.upper()])
        auth = context.auth_context()
        certificates = auth.get("x509_pem_cert") or ()
        if certificates:
            serial = _serial(certificates[0])
            # The handshake has proved it: nobody else can spend this origin's attempts.
            return self._attempt(
                f"certificate {serial:x}", paced, lambda: self._by_certificate(auth, serial), proven=True
            )
        origin = origin_of(context.peer())
        if auth.get("transport_security_type") != [b"ssl"]:
            return self._attempt(origin, paced, _not_encrypted)
        shown = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        known = self._known.pop(shown[0], None) if len(shown) == 1 else None
        if known is not None:  # verified before: strangers at its address cannot shut it out
            return self._still_good(shown[0], known)
        return self._attempt(origin, paced, lambda: self._by_token(shown))

    def _attempt(
        self, origin: str, paced: bool, identify: Callable[[], Caller], proven: bool = False
    ) -> Caller:
        if paced:
            self.failures.check(origin, proven=proven)
        try:
            return identify()
        except UnidentifiedError:
            self.failures.failed(origin, proven=proven)
            raise

    def _by_certificate(self, auth: Mapping[str, Any], serial: int) -> Caller:
        uris = auth.get("peer_uri") or auth.get("peer_spiffe_id") or ()
        caller = caller_from_uris(uris, self._config.trust_domain)
        self._revoked.check(f"cert:{serial:x}", caller.name)
        return caller

    def _by_token(self, shown: Sequence[Any]) -> Caller:
        if self._public is None:
            raise UnidentifiedError("no client certificate", "connect with one")
        if len(shown) != 1 or not isinstance(shown[0], str) or not shown[0].startswith("Bearer "):
            raise UnidentifiedError("no token", "give the one that `ratchet keys token NAME` made")
        token = tokens.verify(shown[0].removeprefix("Bearer "), self._public, self._config.trust_domain)
        return self._still_good(shown[0], token)

    def _still_good(self, shown: str, token: tokens.Token) -> Caller:
        """Whose token it is that was verified, now or before, unless it has ended or been revoked."""
        tokens.check_end(token)
        self._revoked.check(f"token:{token.id}", token.caller.name)
        self._known[shown] = token
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return token.caller


def open_doors(server: grpc.aio.Server, address: str, config: AccessConfig) -> int:
    """Have ``server`` listen at ``address``, and at the door for people; the first one's port.

    Raises CredentialsError for unusable files and DoorError when an address cannot be had.
    """
    if config.tls is None:
        port = _listen(address, server.add_insecure_port)
    else:
        ours = server_credentials(config.tls)
        port = _listen(address, lambda where: server.add_secure_port(where, ours))
        if config.people is not None:
            theirs = people_credentials(config.tls)
            _listen(config.people.address, lambda where: server.add_secure_port(where, theirs))
    if address.startswith("unix:"):
        # Group members may connect, others may not: plaintext rests on this.
        Path(address.removeprefix("unix:")).chmod(0o660)
    return port


def _listen(address: str, add: Callable[[str], int]) -> int:
    try:
        port = add(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise DoorError(f"cannot listen on {address}", "is another server there, or its directory missing?")
    return port


def read_token_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises CredentialsError."""
    try:
        if path.stat().st_size > _MAX_KEY_BYTES:
            raise CredentialsError(f"{path} is too large for a public key", "check the path")
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise CredentialsError(f"cannot read {path} ({error.strerror})", "check the path") from error
    except ValueError as error:
        raise CredentialsError(f"{path} is no public key in PEM form", "copy tokens.pub there") from error
    if not isinstance(key, Ed25519PublicKey):
        raise CredentialsError(f"{path} is no ed25519 key", "copy the authority's tokens.pub there")
    return key


def _not_encrypted() -> NoReturn:
    raise UnidentifiedError("the connection is not encrypted", "connect with a client certificate")


@functools.lru_cache(maxsize=256)
def _serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number
