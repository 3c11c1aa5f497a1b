"""Channel and server credentials: mutual TLS from PEM files, or TLS and a token; nothing else.

Plaintext is for a unix socket or a loopback address, and only when a configuration says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from pydantic import BaseModel, ConfigDict

from protos.access.errors import CredentialsError

MAX_TOKEN_CHARS = 1024
_MAX_PEM_BYTES = 256 * 1024


class TlsFiles(BaseModel):
    """PEM files of one side of mutual TLS: own certificate and key, and the CA that signs the others'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path
    key: Path
    ca: Path


class TokenFiles(BaseModel):
    """A person's token and the CA that signs the servers' certificates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Path
    ca: Path


#: What a client shows to a server.
Identity = TlsFiles | TokenFiles


def identity_in(directory: Path) -> Identity:
    """The identity that `ratchet keys issue` or `ratchet keys token` left in a directory.

    Raises CredentialsError when there is neither.
    """
    if (directory / "client.pem").exists():
        return TlsFiles(
            certificate=directory / "client.pem", key=directory / "client.key", ca=directory / "ca.pem"
        )
    if (directory / "token").exists():
        return TokenFiles(token=directory / "token", ca=directory / "ca.pem")
    raise CredentialsError(
        f"{directory} holds neither client.pem nor token",
        "make one with `ratchet keys issue NAME` where the authority is, and copy the folder here",
    )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate signed by ``files.ca``.

    Raises CredentialsError when a file is missing or is no PEM.
    """
    return grpc.ssl_server_credentials(
        [(_pem(files.key, "PRIVATE KEY"), _pem(files.certificate, "CERTIFICATE"))],
        root_certificates=_pem(files.ca, "CERTIFICATE"),
        require_client_auth=True,
    )


def people_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for the door of people with tokens: encrypted, the server proves itself, the
    client does so with its token. Raises CredentialsError."""
    return grpc.ssl_server_credentials(
        [(_pem(files.key, "PRIVATE KEY"), _pem(files.certificate, "CERTIFICATE"))]
    )


def client_credentials(files: Identity) -> grpc.ChannelCredentials:
    """A client's credentials: trusts ``files.ca`` only and presents its certificate or token.

    Raises CredentialsError when a file is missing or not what it should be.
    """
    ca = _pem(files.ca, "CERTIFICATE")
    if isinstance(files, TokenFiles):
        bearer = grpc.access_token_call_credentials(_token(files.token))
        return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(ca), bearer)
    return grpc.ssl_channel_credentials(
        root_certificates=ca,
        private_key=_pem(files.key, "PRIVATE KEY"),
        certificate_chain=_pem(files.certificate, "CERTIFICATE"),
    )


def open_channel(
    address: str, identity: Identity | None, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel to ``unix:/path`` or ``host:port``.

    Raises CredentialsError for unusable files, and when ``identity`` is None although the address is
    neither a unix socket nor loopback.
    """
    if identity is not None:
        return grpc.aio.secure_channel(address, client_credentials(identity), options=options)
    _require_local(address)
    return grpc.aio.insecure_channel(address, options=options)


def open_sync_channel(address: str, identity: Identity | None) -> grpc.Channel:
    """As `open_channel`, for code without an event loop."""
    if identity is not None:
        return grpc.secure_channel(address, client_credentials(identity))
    _require_local(address)
    return grpc.insecure_channel(address)


def _require_local(address: str) -> None:
    if not is_local(address):
        raise CredentialsError(f"no certificate for {address}", "give --tls files, or connect locally")


def is_local(address: str) -> bool:
    """True for a unix socket or a loopback address, the only places where plaintext is allowed."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(path: Path) -> str:
    text = _read(path, MAX_TOKEN_CHARS + 1).decode("ascii", "replace").strip()
    if not text or len(text) > MAX_TOKEN_CHARS or not text.isascii() or any(c.isspace() for c in text):
        raise CredentialsError(f"{path} holds no token", "make one with `ratchet keys token NAME`")
    return text


def _pem(path: Path, label: str) -> bytes:
    data = _read(path, _MAX_PEM_BYTES)
    if f"{label}-----".encode() not in data:
        raise CredentialsError(f"{path} holds no {label.lower()} in PEM form", "check which file is which")
    return data


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise CredentialsError(f"{path} is too large for what it should hold", "check the path")
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(
            f"cannot read {path} ({error.strerror})", "check the path and its permissions"
        ) from error
