"""Where a user's things are, unless a command is told otherwise."""

from __future__ import annotations

import hashlib
from pathlib import Path


def keys_dir(given: Path | None) -> Path:
    """Directory of the signing key: ``given``, else ``~/.config/ratchet/keys``."""
    return given if given is not None else Path.home() / ".config" / "ratchet" / "keys"


def trust_dir(given: Path | None, keys: Path | None = None) -> Path:
    """Directory of trusted public keys: ``given``, else the key directory, which holds one's own."""
    return given if given is not None else keys_dir(keys)


def registries_dir() -> Path:
    """Where registries are that were given no place of their own, each in a folder by its name."""
    return Path.home() / ".local" / "share" / "ratchet"


def standing_file(address: str) -> Path:
    """What the policy server at ``address`` remembers over a restart: probation, and who was rolled back."""
    return registries_dir() / "serving" / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}.json"


def registry_dir(given: Path | None, name: str) -> Path:
    """Ledger, tracking database and bundles of one policy through all its versions."""
    return given if given is not None else registries_dir() / name
