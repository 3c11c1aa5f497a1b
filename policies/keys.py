"""Ed25519 keys: who signed a bundle, and whom this machine trusts.

A key directory holds ``signing.key`` (32 raw bytes, mode 0600) and ``<key id>.pub``; a trust store is
any directory of ``*.pub`` files, so a robot's trust store is filled by copying public files into it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from policies.errors import KeyStoreError, UnknownKeyError, UnsignedBundleError

KEY_FILE = "signing.key"
MAX_TRUSTED_KEYS = 256
_PUBLIC_LINE = re.compile(rb"ed25519 ([A-Za-z0-9+/]{43}=)\n?\Z")


def key_id(public: bytes) -> str:
    """Name of a public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


@dataclass(frozen=True)
class KeyPair:
    """A signing key. ``public`` is its 32 raw bytes."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> KeyPair:
        """A new random key, not stored anywhere."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    @property
    def id(self) -> str:
        return key_id(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self.private.sign(message)


class TrustStore:
    """Public keys whose signatures are accepted, by key id."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = {key_id(public): Ed25519PublicKey.from_public_bytes(public) for public in keys}

    @classmethod
    def load(cls, directory: Path) -> TrustStore:
        """Read every ``*.pub`` in ``directory``. Raises KeyStoreError when there is none or one is bad."""
        paths = sorted(directory.glob("*.pub"))[: MAX_TRUSTED_KEYS + 1]
        if not paths:
            raise KeyStoreError(f"no trusted keys in {directory}; copy the signer's .pub file there")
        if len(paths) > MAX_TRUSTED_KEYS:
            raise KeyStoreError(f"more than {MAX_TRUSTED_KEYS} keys in {directory}; remove retired ones")
        return cls(read_public(path) for path in paths)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self._keys)

    def verify(self, signer: str, signature: bytes, message: bytes) -> None:
        """Raise UnknownKeyError or UnsignedBundleError unless a trusted ``signer`` signed ``message``."""
        public = self._keys.get(signer)
        if public is None:
            raise UnknownKeyError(f"signed by unknown key {signer}; add its .pub file to the trust store")
        try:
            public.verify(signature, message)
        except InvalidSignature:
            raise UnsignedBundleError(
                f"the signature of key {signer} does not fit the manifest; fetch the bundle again"
            ) from None


def ensure_key(directory: Path) -> KeyPair:
    """The key in ``directory``, made there on first use (with its ``.pub`` beside it).

    Raises KeyStoreError when the key file is malformed or readable by others.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / KEY_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return _load_key(path)
    pair = KeyPair.generate()
    with os.fdopen(descriptor, "wb") as file:
        file.write(pair.private.private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())
    write_public(pair.public, directory)
    return pair


def write_public(public: bytes, directory: Path) -> Path:
    """Write ``<key id>.pub`` into ``directory`` (a trust store or key directory); returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{key_id(public)}.pub"
    path.write_bytes(b"ed25519 " + base64.b64encode(public) + b"\n")
    return path


def _load_key(path: Path) -> KeyPair:
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode) or info.st_size != 32:
        raise KeyStoreError(f"{path} is not a 32-byte key file; move it away and a new one is made")
    if info.st_mode & 0o077:
        raise KeyStoreError(f"{path} is readable by others; chmod 600 it, or replace it if it leaked")
    return KeyPair(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))


def read_public(path: Path) -> bytes:
    """The 32 raw bytes of a ``.pub`` file. Raises KeyStoreError when it is not one."""
    with path.open("rb") as file:
        found = _PUBLIC_LINE.match(file.read(256))
    if found is None:
        raise KeyStoreError(f"{path} is not a public key file ('ed25519 BASE64'); remove or replace it")
    try:
        return base64.b64decode(found.group(1), validate=True)
    except binascii.Error as error:
        raise KeyStoreError(f"{path} is not valid base64; remove or replace it") from error
