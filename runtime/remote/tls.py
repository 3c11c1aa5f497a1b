"""Channel and server credentials: mutual TLS from PEM files, nothing else."""

from __future__ import annotations

from pathlib import Path

import grpc

from runtime.remote.config import TlsFiles
from runtime.remote.errors import RemoteConfigError

_MAX_PEM_BYTES = 256 * 1024


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate signed by ``files.ca``.

    Raises RemoteConfigError when a file is missing or is no PEM.
    """
    return grpc.ssl_server_credentials(
        [(_pem(files.key, "PRIVATE KEY"), _pem(files.certificate, "CERTIFICATE"))],
        root_certificates=_pem(files.ca, "CERTIFICATE"),
        require_client_auth=True,
    )


def client_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """A client's credentials: trusts ``files.ca`` only and presents its own certificate.

    Raises RemoteConfigError when a file is missing or is no PEM.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(files.ca, "CERTIFICATE"),
        private_key=_pem(files.key, "PRIVATE KEY"),
        certificate_chain=_pem(files.certificate, "CERTIFICATE"),
    )


def _pem(path: Path, label: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_PEM_BYTES:
            raise RemoteConfigError(f"{path} is too large for a PEM file", "check the path")
        data = path.read_bytes()
    except OSError as error:
        raise RemoteConfigError(
            f"cannot read {path} ({error.strerror})", "check the path and its permissions"
        ) from error
    if f"{label}-----".encode() not in data:
        raise RemoteConfigError(f"{path} holds no {label.lower()} in PEM form", "check which file is which")
    return data
