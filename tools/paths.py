"""Where a user's things are, unless a command is told otherwise."""

from __future__ import annotations

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


def registry_dir(given: Path | None, name: str) -> Path:
    """Ledger, tracking database and bundles of one policy through all its versions."""
    return given if given is not None else registries_dir() / name
