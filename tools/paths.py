"""Where a user's things are, unless a command is told otherwise."""

from __future__ import annotations

from pathlib import Path


def keys_dir(given: Path | None) -> Path:
    """Directory of the signing key: ``given``, else ``~/.config/ratchet/keys``."""
    return given if given is not None else Path.home() / ".config" / "ratchet" / "keys"


def trust_dir(given: Path | None, keys: Path | None = None) -> Path:
    """Directory of trusted public keys: ``given``, else the key directory, which holds one's own."""
    return given if given is not None else keys_dir(keys)


def registry_dir(given: Path | None) -> Path:
    """Directory of the ledger, the tracking database and the bundles: ``given``, else in ``~/.local/share``."""
    return given if given is not None else Path.home() / ".local" / "share" / "ratchet" / "registry"
