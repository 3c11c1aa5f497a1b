"""Zarr v3 arrays, written and read as plain files.

The format is small: a ``zarr.json`` and one file per chunk. Writing it directly costs a tenth of
going through the zarr library (2.5 ms an array) and gives each file's digest on the way; reading it
directly makes a missing chunk an error, where zarr silently hands out the fill value. The result is
ordinary Zarr v3, which the tests open with zarr itself.
Specification: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from episodes.errors import DamagedError
from episodes.files import FileLayer

CHUNK_BYTES = 1 << 20  # decoded size of a chunk of numbers; short episodes have exactly one
BLOB_CHUNK_BYTES = 4 << 20  # of a chunk of JPEG bytes: few files, each still quick to copy
_ZSTD_LEVEL = 1  # streams are small; higher levels gain 3 % and cost twice the time

FileTable = dict[str, tuple[int, str]]
"""Path relative to the group → (size in bytes, sha256)."""


def _array_json(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    codec: dict[str, Any],
    attributes: dict[str, Any],
) -> bytes:
    fill: Any = False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            # "v2" keys put chunk files beside zarr.json: two folders fewer to make and sync.
            "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, codec],
            "attributes": attributes,
            "storage_transformers": [],
        }
    ).encode()


def write_group(files: FileLayer, root: Path, attributes: dict[str, Any], table: FileTable) -> None:
    """Make ``root`` a new Zarr v3 group."""
    files.mkdir(root)
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()
    table["zarr.json"] = files.write_file(root / "zarr.json", (text,))


def write_array(
    files: FileLayer,
    root: Path,
    name: str,
    values: npt.NDArray[Any],
    attributes: dict[str, Any],
    table: FileTable,
) -> None:
    """Write ``values`` (n, …) as array ``name``: zstd with its checksum, chunks along axis 0."""
    folder = root / name
    files.mkdir(folder)
    rows = len(values)
    row_bytes = max(1, values.dtype.itemsize * math.prod(values.shape[1:]))
    chunk_rows = max(1, min(rows, CHUNK_BYTES // row_bytes))
    codec = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": True}}
    chunk_shape = (chunk_rows, *values.shape[1:])
    text = _array_json(values.shape, chunk_shape, values.dtype.name, codec, attributes)
    table[f"{name}/zarr.json"] = files.write_file(folder / "zarr.json", (text,))
    zstd = Zstd(level=_ZSTD_LEVEL, checksum=True)
    tail = ".0" * (values.ndim - 1)
    for index, start in enumerate(range(0, rows, chunk_rows)):
        part = np.ascontiguousarray(values[start : start + chunk_rows])
        if len(part) < chunk_rows:  # a chunk is always stored whole
            part = np.concatenate([part, np.zeros((chunk_rows - len(part), *part.shape[1:]), part.dtype)])
        table[f"{name}/{index}{tail}"] = files.write_file(folder / f"{index}{tail}", (zstd.encode(part),))


def write_blob(
    files: FileLayer,
    root: Path,
    name: str,
    total: int,
    parts: Iterable[bytes],
    attributes: dict[str, Any],
    table: FileTable,
) -> None:
    """Write ``total`` bytes given in ``parts`` as a uint8 array: uncompressed chunks with CRC32C.

    JPEG does not compress further, and plain bytes let a reader fetch any one picture.
    """
    folder = root / name
    files.mkdir(folder)
    count = max(1, math.ceil(total / BLOB_CHUNK_BYTES))
    chunk = max(1, math.ceil(total / count))
    text = _array_json((total,), (chunk,), "uint8", {"name": "crc32c"}, attributes)
    table[f"{name}/zarr.json"] = files.write_file(folder / "zarr.json", (text,))
    for index, pieces in enumerate(_regroup(parts, chunk)):
        crc = 0
        for piece in pieces:  # one by one: over a whole chunk the interpreter would be held for milliseconds
            crc = google_crc32c.extend(crc, piece)
        pieces.append(crc.to_bytes(4, "little"))
        table[f"{name}/{index}"] = files.write_file(folder / str(index), pieces)


def _regroup(parts: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Cut a run of byte strings into lists of ``size`` bytes each, the last padded with zeros."""
    pieces: list[bytes] = []
    missing = size
    for part in parts:
        rest = part
        while rest:
            piece, rest = rest[:missing], rest[missing:]
            pieces.append(piece)
            missing -= len(piece)
            if not missing:
                yield pieces
                pieces, missing = [], size
    if pieces:
        yield [*pieces, bytes(missing)]


class ArrayFile:
    """One array of a published group, read strictly: anything missing or damaged is an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "zarr.json"
        try:
            described = json.loads(path.read_bytes())
            self.shape = tuple(int(n) for n in described["shape"])
            self.chunk = tuple(int(n) for n in described["chunk_grid"]["configuration"]["chunk_shape"])
            self.dtype = np.dtype(described["data_type"])
            self._compressed = described["codecs"][1]["name"] == "zstd"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise _damaged(path, type(error).__name__) from error

    def read(self) -> npt.NDArray[Any]:
        """The whole array, decoded and checked. Raises DamagedError naming the file."""
        out = np.empty(self.shape, self.dtype)
        step = self.chunk[0]
        tail = ".0" * (len(self.shape) - 1)
        for index, start in enumerate(range(0, self.shape[0], step)):
            part = self._chunk(f"{index}{tail}")
            out[start : start + step] = part[: self.shape[0] - start]
        return out

    def read_bytes(self, offset: int, length: int) -> bytes:
        """``length`` bytes of an uncompressed blob; the caller checks them."""
        found = []
        size = self.chunk[0]
        while length > 0:
            index, inside = divmod(offset, size)
            take = min(length, size - inside)
            path = self.folder / str(index)
            try:
                with path.open("rb") as file:
                    file.seek(inside)
                    data = file.read(take)
            except OSError as error:
                raise _damaged(path, error.strerror or "unreadable") from error
            if len(data) != take:
                raise _damaged(path, "shorter than it was written")
            found.append(data)
            offset += take
            length -= take
        return found[0] if len(found) == 1 else b"".join(found)

    def _chunk(self, key: str) -> npt.NDArray[Any]:
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _damaged(path, error.strerror or "unreadable") from error
        if self._compressed:
            try:
                data = Zstd().decode(data)
            except (RuntimeError, ValueError) as error:
                raise _damaged(path, "fails its checksum") from error
        else:
            body, crc = data[:-4], data[-4:]
            if len(crc) != 4 or google_crc32c.value(body) != int.from_bytes(crc, "little"):
                raise _damaged(path, "fails its checksum")
            data = body
        if len(data) != self.dtype.itemsize * math.prod(self.chunk):
            raise _damaged(path, "has the wrong length")
        return np.frombuffer(data, self.dtype).reshape(self.chunk)


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path} is damaged ({why})", "run verify on the store and restore the episode from a copy"
    )
