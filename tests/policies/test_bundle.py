"""What a bundle promises: signed, hashed, bounded, immutable, and verified before anything is parsed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import policies.bundle
from policies.bundle import Bundle, reissue, write_bundle
from policies.errors import (
    BundleError,
    HashMismatchError,
    ManifestError,
    TruncatedBundleError,
    UnknownKeyError,
    UnsignedBundleError,
    WrongRobotError,
)
from policies.keys import KeyPair, TrustStore
from policies.manifest import BUNDLE_FILES, KOCH_FEATURES, Manifest
from tests.policies.conftest import TINY

Copy = Callable[[], Path]
ALL_FILES = (*BUNDLE_FILES, "manifest.json", "signature")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))


def sign_again(directory: Path, key: KeyPair, change: Callable[[dict], None]) -> None:
    """What a signer with other software might publish: another manifest, rightly signed."""
    import base64

    manifest = json.loads((directory / "manifest.json").read_bytes())
    change(manifest)
    raw = json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(raw)
    signature = base64.b64encode(key.sign(policies.bundle._DOMAIN + raw))
    (directory / "signature").write_bytes(b"ed25519 " + key.id.encode() + b" " + signature + b"\n")


def test_a_published_bundle_opens_and_knows_itself(exported: Bundle, trust: TrustStore) -> None:
    bundle = Bundle.open(exported.path, trust)
    assert bundle.version == exported.version == bundle.content_id[:12]
    assert bundle.manifest == exported.manifest
    assert {entry.path for entry in bundle.manifest.files} == set(BUNDLE_FILES)
    assert bundle.manifest.chunk == TINY.chunk
    assert bundle.manifest.execute == TINY.execute
    assert bundle.manifest.monitors is None


def test_the_parent_directory_holds_only_the_bundle(exported: Bundle) -> None:
    assert [path.name for path in exported.path.parent.iterdir()] == [exported.path.name]


def test_a_stranger_is_not_trusted(exported: Bundle) -> None:
    with pytest.raises(UnknownKeyError, match=exported.signer):
        Bundle.open(exported.path, TrustStore([KeyPair.generate().public]))


def test_signature_of_another_bundle_or_key_does_not_fit(copy: Copy, key: KeyPair, trust: TrustStore) -> None:
    directory = copy()
    (directory / "manifest.json").write_bytes((directory / "manifest.json").read_bytes() + b" ")
    with pytest.raises(UnsignedBundleError):
        Bundle.open(directory, trust)
    directory = copy()
    stranger = KeyPair.generate()
    sign_again(directory, stranger, lambda manifest: None)
    text = (directory / "signature").read_text().replace(stranger.id, key.id)
    (directory / "signature").write_text(text)
    with pytest.raises(UnsignedBundleError):
        Bundle.open(directory, trust)


@pytest.mark.parametrize("content", [None, b"", b"ed25519", b"x" * 10_000])
def test_unsigned_is_never_loaded(copy: Copy, trust: TrustStore, content: bytes | None) -> None:
    directory = copy()
    (directory / "signature").unlink()
    if content is not None:
        (directory / "signature").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(directory, trust)
    assert "\n" not in str(caught.value)


def test_nothing_is_parsed_before_the_signature_is_checked(
    copy: Copy, trust: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(data: bytes) -> Manifest:
        raise AssertionError("parsed an unverified manifest")

    monkeypatch.setattr(Manifest, "from_bytes", never)
    directory = copy()
    flip(directory / "manifest.json", 20)
    with pytest.raises(UnsignedBundleError):
        Bundle.open(directory, trust)


def test_any_flipped_bit_anywhere_is_refused(copy: Copy, trust: TrustStore) -> None:
    directory, rng = copy(), random.Random(0)
    for name in ALL_FILES:
        path = directory / name
        original = path.read_bytes()
        for _ in range(6):
            flip(path, rng.randrange(len(original)))
            with pytest.raises(BundleError):
                Bundle.open(directory, trust)
            path.write_bytes(original)
    Bundle.open(directory, trust)


@pytest.mark.parametrize("name", ALL_FILES)
def test_missing_or_truncated_files_are_refused(copy: Copy, trust: TrustStore, name: str) -> None:
    directory = copy()
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[: len(data) // 2])
    with pytest.raises((TruncatedBundleError, UnsignedBundleError)):
        Bundle.open(directory, trust)
    (directory / name).unlink()
    with pytest.raises((TruncatedBundleError, UnsignedBundleError), match=r"missing|no signature"):
        Bundle.open(directory, trust)


def test_equal_size_other_bytes_is_a_wrong_hash(copy: Copy, trust: TrustStore) -> None:
    directory = copy()
    flip(directory / "model.onnx", 5000)
    with pytest.raises(HashMismatchError, match=r"model\.onnx"):
        Bundle.open(directory, trust)


def test_a_file_changed_after_verification_is_not_read(copy: Copy, trust: TrustStore) -> None:
    directory = copy()
    bundle = Bundle.open(directory, trust)
    flip(directory / "model.onnx", 5000)
    with pytest.raises(HashMismatchError, match="since it was verified"):
        bundle.read("model.onnx")


def test_links_pipes_and_strangers_are_refused(copy: Copy, trust: TrustStore, tmp_path: Path) -> None:
    directory = copy()
    (directory / "model.onnx").rename(tmp_path / "elsewhere")
    (directory / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(directory, trust)
    directory = copy()
    (directory / "signature").unlink()
    os.mkfifo(directory / "signature")
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(directory, trust)
    directory = copy()
    (directory / "extra.py").write_text("")
    with pytest.raises(BundleError, match=r"extra\.py"):
        Bundle.open(directory, trust)


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd", "a/b", "..", ".hidden"])
def test_even_a_signed_manifest_names_plain_files_only(
    copy: Copy, key: KeyPair, trust: TrustStore, path: str
) -> None:
    directory = copy()
    sign_again(directory, key, lambda manifest: manifest["files"][0].update(path=path))
    with pytest.raises(ManifestError, match=r"files\.0\.path"):
        Bundle.open(directory, trust)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(surprise=1),
        lambda manifest: manifest.update(schema_id="ratchet.bundle/9"),
        lambda manifest: manifest.update(execute=manifest["chunk"] + 1),
        lambda manifest: manifest.pop("normalisation"),
        lambda manifest: manifest.update(files=manifest["files"][:-1]),
        lambda manifest: manifest["files"][0].update(size=2**50),
        lambda manifest: manifest["cameras"].append({"name": "top", "height": 64, "width": 64}),
    ],
)
def test_signed_but_not_understood(
    copy: Copy, key: KeyPair, trust: TrustStore, change: Callable[[dict], None]
) -> None:
    directory = copy()
    sign_again(directory, key, change)
    with pytest.raises(ManifestError) as caught:
        Bundle.open(directory, trust)
    assert "\n" not in str(caught.value)


def test_size_limits_hold_before_reading(
    copy: Copy, trust: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copy()
    monkeypatch.setattr(policies.bundle, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match="more than 100 bytes"):
        Bundle.open(directory, trust)
    monkeypatch.undo()
    monkeypatch.setattr(policies.bundle, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleError, match="100 allowed"):
        Bundle.open(directory, trust)
    monkeypatch.undo()
    monkeypatch.setattr(policies.bundle, "MAX_SAFETENSORS_HEADER", 10)
    with pytest.raises(BundleError, match="header"):
        Bundle.open(directory, trust)


def test_wrong_robot_or_features(exported: Bundle) -> None:
    manifest = exported.manifest
    manifest.require("koch", KOCH_FEATURES, TINY.cameras)
    with pytest.raises(WrongRobotError, match="so100"):
        manifest.require("so100", KOCH_FEATURES, TINY.cameras)
    with pytest.raises(WrongRobotError, match="joints"):
        manifest.require("koch", KOCH_FEATURES[:5], TINY.cameras)
    with pytest.raises(WrongRobotError, match="front"):
        manifest.require("koch", KOCH_FEATURES, TINY.cameras[1:])


def test_reissue_keeps_weights_and_is_another_version(
    exported: Bundle, tmp_path: Path, key: KeyPair, trust: TrustStore
) -> None:
    thresholds = {"disagreement": {"threshold": [0.1, 0.2]}, "n_calibration": 50, "alpha": 0.05}
    reissue(exported, tmp_path / "next", key, monitors=thresholds, evaluation={"rate": 0.5})
    bundle = Bundle.open(tmp_path / "next", trust)
    assert bundle.version != exported.version
    assert bundle.manifest.files == exported.manifest.files
    assert bundle.manifest.monitors == thresholds
    assert bundle.manifest.version_number == exported.manifest.version_number + 1
    assert bundle.manifest.reissue_of == exported.content_id
    again = reissue(bundle, tmp_path / "last", key, evaluation={"rate": 0.6})
    assert again.manifest.monitors == thresholds


def test_reissue_refuses_damaged_files(copy: Copy, tmp_path: Path, key: KeyPair, trust: TrustStore) -> None:
    directory = copy()
    bundle = Bundle.open(directory, trust)
    flip(directory / "model.safetensors", 5000)
    with pytest.raises(HashMismatchError):
        reissue(bundle, tmp_path / "next", key)
    assert not (tmp_path / "next").exists()


def test_publishing_is_all_or_nothing(
    exported: Bundle, tmp_path: Path, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: exported.path / name for name in BUNDLE_FILES}
    out = tmp_path / "new"
    with pytest.raises(BundleError, match=r"model\.onnx"):
        write_bundle(out, {k: v for k, v in files.items() if k != "model.onnx"}, exported.manifest, key)
    with pytest.raises(FileNotFoundError):
        write_bundle(out, {**files, "processors.json": tmp_path / "absent"}, exported.manifest, key)
    assert list(tmp_path.iterdir()) == []
    write_bundle(out, files, exported.manifest, key)
    with pytest.raises(BundleError, match="never change"):
        write_bundle(out, files, exported.manifest, key)


def test_same_content_same_version(exported: Bundle, tmp_path: Path, key: KeyPair) -> None:
    files = {name: exported.path / name for name in BUNDLE_FILES}
    assert write_bundle(tmp_path / "twin", files, exported.manifest, key).version == exported.version


def test_no_bundle_at_all(tmp_path: Path, trust: TrustStore) -> None:
    with pytest.raises(TruncatedBundleError, match="no bundle directory"):
        Bundle.open(tmp_path / "absent", trust)


@pytest.mark.parametrize(
    "module", ["session", "bundle", "manifest", "keys", "golden", "config", "processors"]
)
def test_serving_needs_no_torch(module: str) -> None:
    code = f"import sys, policies.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
