"""What a dataset may ask of this machine: sizes are looked at before anything is parsed.

A dataset is somebody else's files. ``info.json`` gives sizes and format strings, parquet footers give
row counts and uncompressed sizes, videos give dimensions; each has a limit here, far above real sets.
"""

from __future__ import annotations

import json
import re
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
GROUP_BYTES = 2 << 30  # uncompressed, of what is read at once
PARQUET_COLUMNS = 20_000  # episode metadata has some ten columns per feature
FEATURES = 500
ELEMENTS = 1_000_000  # of one value
PIXELS = 8192  # along one side
FPS = 1000.0
EPISODES = 10_000_000
LENGTH = 100_000_000  # frames of one episode


def refuse_larger(path: Path, limit: int) -> None:
    """Raises ImportRefusedError when the file is larger than ``limit`` bytes; FileNotFoundError passes."""
    size = path.stat().st_size
    if size > limit:
        raise ImportRefusedError(
            f"{path} has {size} bytes, more than the {limit} this program reads", "check the dataset"
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
    try:
        file = pq.ParquetFile(path, thrift_string_size_limit=256 << 20, thrift_container_size_limit=4 << 20)
    except FileNotFoundError:
        raise ImportRefusedError(f"{path} is missing", "check the download") from None
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise ImportRefusedError(
            f"{path} is not a readable parquet file ({first})",
            "a recording killed before finalize() looks like this",
        ) from error
    meta = file.metadata
    total = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if meta.num_columns > PARQUET_COLUMNS or total > PARQUET_BYTES:
        raise ImportRefusedError(
            f"{path} has {meta.num_columns} columns and {total} bytes, more than this program reads",
            "check the dataset",
        )
    return file


def read(path: Path, columns: list[str] | None = None) -> Any:
    """A parquet file as a pyarrow Table, if it is small enough to be held. Raises ImportRefusedError."""
    with parquet(path) as file:
        meta = file.metadata
        total = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if total > GROUP_BYTES:
            raise ImportRefusedError(f"{path} holds {total} bytes, too many to read at once")
        try:
            return file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ImportRefusedError(
                f"{path} cannot be read ({str(error).splitlines()[0]})", "check the download"
            ) from error
