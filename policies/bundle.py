"""Bundles: signed, immutable directories with one policy version in every form it is served in.

Nothing in a bundle is parsed before it has been verified, in this order: size limits, the signature
over the manifest's bytes, the manifest itself, then size and SHA-256 of every file. Only plain
file names are used, symbolic links are never followed, and nothing is unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Literal, Self

from policies.errors import (
    BundleError,
    HashMismatchError,
    ManifestError,
    TruncatedBundleError,
    UnsignedBundleError,
)
from policies.keys import KeyPair, TrustStore
from policies.manifest import (
    BUNDLE_FILES,
    FP32_FILE,
    INT8_FILE,
    FileEntry,
    JsonObject,
    Manifest,
    content_id,
    now_label,
)

Precision = Literal["fp32", "int8"]
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "signature"
MAX_MANIFEST_BYTES = 8 * 2**20
MAX_FILE_BYTES = 2 * 2**30
MAX_BUNDLE_BYTES = 6 * 2**30
MAX_SAFETENSORS_HEADER = 4 * 2**20
_BLOCK = 2**20
_SIGNATURE = re.compile(rb"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)\n\Z")
_DOMAIN = b"ratchet.bundle/1\0"


class Bundle:
    """A verified bundle. Make one with `Bundle.open`; ``version`` is its content id, short form."""

    def __init__(self, path: Path, manifest: Manifest, identity: str, signer: str) -> None:
        self.path = path
        self.manifest = manifest
        self.content_id = identity
        self.version = identity[:12]
        self.signer = signer

    @classmethod
    def open(cls, path: Path | str, trust: TrustStore) -> Self:
        """Verify everything. Raises a BundleError subclass whose one line says what is wrong."""
        root = Path(path)
        with _directory(root) as folder:
            raw = _read_small(folder, root, MANIFEST_FILE, MAX_MANIFEST_BYTES)
            found = _SIGNATURE.match(_read_signature(folder, root))
            if found is None:
                raise UnsignedBundleError(
                    f"{root / SIGNATURE_FILE} is not a signature; fetch the bundle again"
                )
            signer = found.group(1).decode()
            trust.verify(signer, base64.b64decode(found.group(2)), _DOMAIN + raw)
            manifest = Manifest.from_bytes(raw)
            _check_listing(folder, root, manifest)
            for entry in manifest.files:
                _check_file(folder, root, entry)
        return cls(root, manifest, content_id(raw), signer)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, hashed again as they are read: what is returned is what was signed."""
        entry = self.manifest.entry(name)
        with _directory(self.path) as folder, _open(folder, self.path, name) as file:
            data = file.read(entry.size + 1)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise HashMismatchError(
                f"{self.path / name} changed since it was verified; fetch the bundle again"
            )
        return data

    def onnx_name(self, precision: Precision) -> str:
        """File name of the ONNX form of that precision."""
        return FP32_FILE if precision == "fp32" else INT8_FILE

    def onnx_path(self, precision: Precision) -> Path:
        """Where the ONNX form lies; prefer `read`, which checks the bytes it returns."""
        return self.path / self.onnx_name(precision)

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name!r}, version {self.version}, {self.path})"


def write_bundle(out: Path, files: Mapping[str, Path | bytes], manifest: Manifest, key: KeyPair) -> Bundle:
    """Publish a bundle at ``out``, which must not exist: all of it appears at once, or nothing.

    ``files`` gives each file's bytes, or a path to copy; ``manifest.files`` is filled in here.
    Everything is written to a directory beside ``out``, synced to disk and renamed. Raises
    BundleError when ``out`` exists or a file is missing from ``files``.
    """
    missing = sorted(set(BUNDLE_FILES) - set(files))
    if missing:
        raise BundleError(f"a bundle needs {missing[0]}; export it before publishing")
    if out.exists() or out.is_symlink():
        raise BundleError(f"{out} exists and bundles never change; choose another directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        entries = tuple(_write(partial / name, files[name]) for name in sorted(files))
        final = Manifest.model_validate({**manifest.model_dump(), "files": entries})
        raw = final.to_bytes()
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"the manifest has {len(raw)} bytes, {MAX_MANIFEST_BYTES} allowed; store less in it"
            )
        signature = base64.b64encode(key.sign(_DOMAIN + raw))
        _write(partial / MANIFEST_FILE, raw)
        _write(partial / SIGNATURE_FILE, b"ed25519 " + key.id.encode() + b" " + signature + b"\n")
        partial.chmod(0o755)
        _sync_directory(partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_directory(out.parent)
    return Bundle(out, final, content_id(raw), key.id)


def reissue(
    bundle: Bundle,
    out: Path,
    key: KeyPair,
    *,
    monitors: JsonObject | None = None,
    evaluation: JsonObject | None = None,
) -> Bundle:
    """The same weights under a new signed manifest, its version number one higher.

    ``monitors`` and ``evaluation`` replace the old ones where given. Files are copied, and must
    still be those ``bundle`` was verified with. Raises BundleError otherwise, or when ``out`` exists.
    """
    old = bundle.manifest
    update: dict[str, object] = {
        "version_number": old.version_number + 1,
        "reissue_of": bundle.content_id,
        "created": now_label(),
    }
    if monitors is not None:
        update["monitors"] = monitors
    if evaluation is not None:
        update["evaluation"] = evaluation
    with _directory(bundle.path) as folder:
        for entry in old.files:
            _check_file(folder, bundle.path, entry)
    manifest = Manifest.model_validate({**old.model_dump(), **update})
    return write_bundle(out, {entry.path: bundle.path / entry.path for entry in old.files}, manifest, key)


@contextmanager
def _directory(root: Path) -> Iterator[int]:
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TruncatedBundleError(
            f"no bundle directory at {root} ({error.strerror}); check the path"
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _open(folder: int, root: Path, name: str) -> BufferedReader:
    """Open a plain file of the directory: never through a link, never a device or pipe."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, dir_fd=folder), "rb")
    except FileNotFoundError:
        raise TruncatedBundleError(f"{root / name} is missing; fetch the bundle again") from None
    except OSError as error:
        raise BundleError(f"{root / name} is not a plain file ({error.strerror}); do not load it") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BundleError(f"{root / name} is not a plain file; do not load it")
    return file


def _read_small(folder: int, root: Path, name: str, limit: int) -> bytes:
    with _open(folder, root, name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{root / name} has more than {limit} bytes; do not load it")
    return data


def _read_signature(folder: int, root: Path) -> bytes:
    try:
        return _read_small(folder, root, SIGNATURE_FILE, 256)
    except TruncatedBundleError:
        raise UnsignedBundleError(f"{root} has no signature; only signed bundles are loaded") from None


def _check_listing(folder: int, root: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    for name in BUNDLE_FILES:
        manifest.entry(name)
    if listed & {MANIFEST_FILE, SIGNATURE_FILE}:
        raise ManifestError(f"{root}: the manifest lists itself; made by other software?")
    extra = sorted(set(os.listdir(folder)) - listed - {MANIFEST_FILE, SIGNATURE_FILE})
    if extra:
        raise BundleError(f"{root / extra[0]} is not part of the bundle; remove it or fetch the bundle again")
    if sum(entry.size for entry in manifest.files) > MAX_BUNDLE_BYTES:
        raise BundleError(f"{root} states more than {MAX_BUNDLE_BYTES} bytes; do not load it")


def _check_file(folder: int, root: Path, entry: FileEntry) -> None:
    where = root / entry.path
    if entry.size > MAX_FILE_BYTES:
        raise BundleError(f"{where} states {entry.size} bytes, {MAX_FILE_BYTES} allowed; do not load it")
    with _open(folder, root, entry.path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise TruncatedBundleError(f"{where} has {size} bytes, not {entry.size}; fetch the bundle again")
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            raise HashMismatchError(f"{where} does not have the signed hash; fetch the bundle again")
        if entry.path.endswith(".safetensors"):
            file.seek(0)
            header = int.from_bytes(file.read(8), "little")
            if header > min(MAX_SAFETENSORS_HEADER, size - 8):
                raise BundleError(f"{where} states a header of {header} bytes; do not load it")


def _write(path: Path, content: Path | bytes) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for block in _blocks(content):
            digest.update(block)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(path=path.name, size=size, sha256=digest.hexdigest())


def _blocks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _sync_directory(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
