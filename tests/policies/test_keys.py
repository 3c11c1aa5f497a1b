"""Keys and trust stores."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from policies.errors import KeyStoreError, UnknownKeyError, UnsignedBundleError
from policies.keys import KEY_FILE, KeyPair, TrustStore, ensure_key, write_public


def test_a_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first = ensure_key(tmp_path / "keys")
    assert ensure_key(tmp_path / "keys").public == first.public
    assert stat.S_IMODE((tmp_path / "keys" / KEY_FILE).stat().st_mode) == 0o600


def test_a_trust_store_is_a_directory_of_public_keys(tmp_path: Path) -> None:
    signer, other = ensure_key(tmp_path / "signer"), KeyPair.generate()
    write_public(signer.public, tmp_path / "trust")
    write_public(other.public, tmp_path / "trust")
    trust = TrustStore.load(tmp_path / "trust")
    assert trust.ids == {signer.id, other.id}
    trust.verify(signer.id, signer.sign(b"text"), b"text")
    with pytest.raises(UnsignedBundleError):
        trust.verify(signer.id, signer.sign(b"text"), b"other text")
    with pytest.raises(UnsignedBundleError):
        trust.verify(other.id, signer.sign(b"text"), b"text")
    with pytest.raises(UnknownKeyError):
        trust.verify("0" * 16, signer.sign(b"text"), b"text")


def test_an_exposed_or_damaged_key_is_refused(tmp_path: Path) -> None:
    ensure_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(KeyStoreError, match="readable by others"):
        ensure_key(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(KeyStoreError, match="32-byte"):
        ensure_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"ed25519 AAAA\n", b"rsa " + b"A" * 43 + b"=\n", b"\xff" * 300])
def test_a_malformed_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pub").write_bytes(content)
    with pytest.raises(KeyStoreError, match=r"x\.pub"):
        TrustStore.load(tmp_path)


def test_an_empty_trust_store_trusts_nobody(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="no trusted keys"):
        TrustStore.load(tmp_path)
