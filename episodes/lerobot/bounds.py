"""What a dataset may ask of this machine: sizes are looked at before anything is parsed.

A dataset is somebody else's files. ``info.json`` gives sizes and format strings, parquet footers give
row counts and uncompressed sizes, videos give dimensions; each has a limit here, far above real sets.
"""

from __future__ import annotations

import json
import re
import stat
import string
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from episodes.errors import ImportRefusedError

JSON_BYTES = 64 << 20
LINES_BYTES = 4 << 30
LINE_BYTES = 16 << 20
PARQUET_BYTES = 16 << 30  # uncompressed, of one file
GROUP_BYTES = 2 << 30  # decoded, of what is read at once
ROWS = 100_000_000  # of one file
PARQUET_COLUMNS = 20_000  # episode metadata has some ten columns per feature
FEATURES = 500
ELEMENTS = 1_000_000  # of one value
PIXELS = 8192  # along one side
SCANS = 64  # of a JPEG; each is decoded over the whole picture, and may be a few bytes
FPS = 1000.0
EPISODES = 10_000_000
LENGTH = 100_000_000  # frames of one episode
_FEW_ROWS = 64
_SMALL = 8 << 20  # bytes: less is read faster by one thread
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def regular(path: Path, what: str = "file", remedy: str = "check the download") -> int:
    """The size of a plain file, looked at before it is opened: a pipe or a device would keep us waiting.

    Raises ImportRefusedError when it is missing or something else.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ImportRefusedError(f"{what} {path} is missing", remedy) from None
    except OSError as error:
        raise ImportRefusedError(f"{what} {path} cannot be read ({error.strerror})", "check it") from error
    if not stat.S_ISREG(found.st_mode):
        raise ImportRefusedError(f"{what} {path} is no plain file", "check the dataset")
    return found.st_size


def refuse_larger(path: Path, limit: int, remedy: str = "check the download") -> None:
    """Raises ImportRefusedError when this is no plain file or larger than ``limit`` bytes."""
    size = regular(path, remedy=remedy)
    if size > limit:
        raise ImportRefusedError(
            f"{path} has {size} bytes, more than the {limit} this program reads", "check the dataset"
        )


class Home:
    """The folder the files of a dataset may lie in, whatever links lead there.

    Its own; for a snapshot in a Hugging Face cache (REPO/snapshots/REVISION) that of the repository,
    whose blobs the snapshot's files are links to.
    """

    def __init__(self, root: Path) -> None:
        real = root.resolve()
        cached = real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir()
        self.folder = real.parent.parent if cached else real
        self._sound: set[Path] = set()

    def inside(self, path: Path) -> Path:
        """``path``, unless it leads out of the folder. Raises ImportRefusedError."""
        parent = path.parent
        if parent not in self._sound:
            self._check(parent)
            self._sound.add(parent)
        if path.is_symlink() or path.name == "..":
            self._check(path)
        return path

    def _check(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.folder):
            raise ImportRefusedError(
                f"{path} leads outside the dataset ({self.folder})", "copy the dataset with all its files"
            )


def json_line(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The JSON object in the next line of ``file``. Raises ImportRefusedError naming ``path``."""
    try:
        value = json.loads(file.readline(LINE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefusedError(f"{path} is not readable JSON lines", "check the download") from error
    return value if isinstance(value, dict) else {}


def template(text: str, allowed: set[str], where: Path) -> str:
    """A path template of info.json, unless it names anything but ``allowed`` or asks for wide padding.

    ``str.format`` would follow attributes and pad to any width.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ImportRefusedError(f"{where} has a malformed path template {text[:80]!r}") from error
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in allowed or conversion or not re.fullmatch(r"(0?\d?d?)?", spec or ""):
            raise ImportRefusedError(
                f"{where} has a path template with {{{name[:40]}:{(spec or '')[:20]}}}",
                f"known are {', '.join(sorted(allowed))}",
            )
    return text


def feature_shape(key: str, described: Any, where: Path) -> tuple[int, ...]:
    """The shape of a feature in info.json. Raises ImportRefusedError when it is none or too large."""
    shape = described.get("shape") if isinstance(described, dict) else None
    if isinstance(shape, int):
        shape = [shape]
    fine = isinstance(shape, list) and len(shape) <= 5 and all(isinstance(n, int) and n > 0 for n in shape)
    if not fine or not shape:
        raise ImportRefusedError(f"{where}: feature {key[:80]} has no usable shape ({str(shape)[:60]})")
    picture = described.get("dtype") in ("video", "image")
    total = 1
    for n in shape:
        total *= n
    if max(shape) > PIXELS if picture else total > ELEMENTS:
        raise ImportRefusedError(f"{where}: feature {key[:80]} is too large ({shape})", "check info.json")
    return tuple(shape)


def number(value: Any, low: float, high: float, what: str, where: Path) -> float:
    """A number of info.json within its limits. Raises ImportRefusedError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ImportRefusedError(f"{where}: {what} is {str(value)[:40]!r}, not between {low:g} and {high:g}")
    return float(value)


def parquet(path: Path) -> Any:
    """An opened pyarrow ParquetFile whose footer stays within the limits. Raises ImportRefusedError."""
    regular(path)
    try:
        file = pq.ParquetFile(path, thrift_string_size_limit=256 << 20, thrift_container_size_limit=4 << 20)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise ImportRefusedError(
            f"{path} is not a readable parquet file ({first})",
            "a recording killed before finalize() looks like this",
        ) from error
    meta = file.metadata
    total = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if meta.num_columns > PARQUET_COLUMNS or total > PARQUET_BYTES or meta.num_rows > ROWS:
        raise ImportRefusedError(
            f"{path} has {meta.num_columns} columns, {meta.num_rows} rows and {total} bytes, more than this "
            "program reads",
            "check the dataset",
        )
    return file


def read(path: Path, columns: list[str] | None = None) -> Any:
    """A parquet file as a pyarrow Table, if it is small enough to be held. Raises ImportRefusedError."""
    with parquet(path) as file:
        return read_open(file, path, columns)


def read_open(file: Any, path: Path, columns: list[str] | None = None) -> Any:
    """The same from a file that ``parquet`` has opened."""
    fixed, texts = _decoded_bytes(file.metadata, None if columns is None else set(columns))
    if fixed > GROUP_BYTES:
        raise ImportRefusedError(
            f"{path} holds {fixed} bytes of numbers, too many to read at once", "check the dataset"
        )
    try:
        if fixed + texts <= GROUP_BYTES:
            return file.read(columns=columns, use_threads=fixed + texts > _SMALL)
        return _read_slowly(file, columns, path)
    except (pa.ArrowException, OSError) as error:
        raise ImportRefusedError(
            f"{path} cannot be read ({str(error).splitlines()[0]})", "check the download"
        ) from error


def _decoded_bytes(meta: Any, columns: set[str] | None) -> tuple[int, int]:
    """How large a file becomes in memory, from its footer: numbers, and at most how large texts and pictures.

    A million equal values are a few bytes in a file: what counts is how many there are.
    """
    fixed = texts = 0
    for group in range(meta.num_row_groups):
        for number in range(meta.row_group(group).num_columns):
            column = meta.row_group(group).column(number)
            if columns is not None and not _names(column.path_in_schema) & columns:
                continue
            width = _WIDTHS.get(column.physical_type)
            if width is not None:
                fixed += column.num_values * width
            elif {"PLAIN_DICTIONARY", "RLE_DICTIONARY"} & set(column.encodings):
                texts += column.num_values * (column.total_uncompressed_size + 8)
            else:
                texts += column.total_uncompressed_size + column.num_values * 8
    return fixed, texts


def _names(path: str) -> set[str]:
    """What the column of a leaf may be called: ``a.b.list.element`` is one of ``a.b``."""
    parts = path.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


def _read_slowly(file: Any, columns: list[str] | None, path: Path) -> Any:
    """A few rows at a time, so that one large text used many times is noticed before memory is full."""
    batches, held = [], 0
    for batch in file.iter_batches(batch_size=_FEW_ROWS, columns=columns):
        held += batch.nbytes
        if held > GROUP_BYTES:
            raise ImportRefusedError(
                f"{path} holds more than {GROUP_BYTES} bytes, too many to read at once", "check the dataset"
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else file.schema_arrow)
