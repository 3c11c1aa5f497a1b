"""What is attacked, and as whom: in plaintext, with a certificate of the site's, or with none."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path

import grpc
import grpc.aio

from protos.access.tls import client_credentials, identity_in

_OPTIONS = (("grpc.max_send_message_length", 64 * 2**20), ("grpc.use_local_subchannel_pool", 1))


class Target:
    """A server at ``host:port``. ``identity`` is a folder with ca.pem, and client.pem and client.key for
    whoever has them; None: the server speaks plaintext."""

    def __init__(self, host: str, port: int, identity: Path | None) -> None:
        self.host, self.port = host, port
        self._identity = identity
        self._context: ssl.SSLContext | None = None
        certificate = None if identity is None else identity / "client.pem"
        #: Whether a server that is as it should be speaks to us at all.
        self.invited = certificate is None or certificate.exists()
        if identity is not None:
            self._context = ssl.create_default_context(cafile=identity / "ca.pem")
            self._context.set_alpn_protocols(["h2"])
            if certificate is not None and self.invited:
                self._context.load_cert_chain(certificate, identity / "client.key")

    def channel(self) -> grpc.aio.Channel:
        """A channel for calls; only for who is invited."""
        address = f"{self.host}:{self.port}"
        if self._identity is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        credentials = client_credentials(identity_in(self._identity))
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)

    async def connect(self, rng: random.Random) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for bytes: encrypted where the server wants it, and, as a stranger, now and then not.

        Raises OSError, which ssl.SSLError is one of.
        """
        bare = self._context is None or (not self.invited and rng.random() < 0.5)
        return await asyncio.open_connection(self.host, self.port, ssl=None if bare else self._context)
