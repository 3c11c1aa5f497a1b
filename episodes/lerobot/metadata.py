"""Reading the small files of a LeRobot dataset: JSON, JSON lines, feature entries, tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds

_KEY = re.compile(r"[^\W.][\w .:+-]{0,127}")
"""What a feature may be called: names become folders, ``observation.images.front`` for one."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One entry of ``features`` in info.json; ``names`` flattened, empty when absent or unusable;
    ``unit`` only where Ratchet wrote it.

    Pictures have the shape (height, width, channels), whatever order info.json gives it in.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    unit: str = ""

    @property
    def is_picture(self) -> bool:
        """True for video and image features."""
        return self.dtype in ("video", "image")


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object, not larger than allowed. Raises ImportRefusedError naming the file."""
    try:
        bounds.refuse_larger(path, bounds.JSON_BYTES, "give the folder that holds meta/ and data/")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefusedError(f"{path} is not readable JSON", "check the download") from error
    if not isinstance(value, dict):
        raise ImportRefusedError(f"{path} is not a JSON object", "check the download")
    return value


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Byte offset and object of each line, one at a time. Raises ImportRefusedError naming the file."""
    try:
        bounds.refuse_larger(path, bounds.LINES_BYTES)
        with path.open("rb") as file:
            offset = 0
            while line := file.readline(bounds.LINE_BYTES + 1):
                if len(line) > bounds.LINE_BYTES:
                    raise ImportRefusedError(
                        f"{path} has a line of more than {bounds.LINE_BYTES} bytes at {offset}"
                    )
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ImportRefusedError(f"{path} has a line that is no object at byte {offset}")
                    yield offset, value
                offset += len(line)
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefusedError(f"{path} is not readable JSON lines", "check the download") from error


def read_features(info: dict[str, Any], where: Path, repairs: list[str]) -> dict[str, Feature]:
    """All features of info.json by name; what had to be read differently than written goes to ``repairs``.

    Raises ImportRefusedError for one that has no clear meaning.
    """
    described = info.get("features")
    if not isinstance(described, dict) or not described or len(described) > bounds.FEATURES:
        raise ImportRefusedError(f"{where} has no usable features", "check it")
    for key in described:
        if not _KEY.fullmatch(key) or ".." in key:
            raise ImportRefusedError(
                f"{where} has a feature named {key[:60]!r}, which cannot be part of a path", "rename it"
            )
    return {key: _feature(key, value, where, repairs) for key, value in described.items()}


def _feature(key: str, described: Any, where: Path, repairs: list[str]) -> Feature:
    shape = bounds.feature_shape(key, described, where)
    dtype = str(described.get("dtype"))
    if dtype in ("video", "image"):
        shape = _picture_shape(key, shape, where, repairs)
    unit = str(described.get("unit") or "")[:40]
    return Feature(key, dtype, shape, _flat_names(described.get("names")), unit)


def _picture_shape(key: str, shape: tuple[int, ...], where: Path, repairs: list[str]) -> tuple[int, ...]:
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape
    if len(shape) == 3 and shape[0] in (1, 3):
        turned = (*shape[1:], shape[0])
        repairs.append(f"{key} has its shape as channels first {shape}; read as {turned}")
        return turned
    raise ImportRefusedError(
        f"{where}: pictures of {key} have shape {shape}, which is neither height × width × channels "
        "nor channels first",
        "correct info.json",
    )


def _flat_names(names: Any) -> tuple[str, ...]:
    """LeRobot writes names as a list, a list of lists, a dict of lists, a dict name → index, or null."""
    if isinstance(names, str):
        return (names[:200],)
    if isinstance(names, dict):
        if all(isinstance(v, int) for v in names.values()):
            return tuple(str(k) for k, _ in sorted(names.items(), key=lambda item: item[1]))
        return tuple(n for v in names.values() for n in _flat_names(v))
    if isinstance(names, list):
        return tuple(n for v in names for n in _flat_names(v))
    return ()


def read_tasks(root: Path, version: str) -> dict[int, str]:
    """Task texts by index. Raises ImportRefusedError, KeyError, TypeError, ValueError."""
    if version == "v2.1":
        rows = (row for _, row in json_lines(root / "meta" / "tasks.jsonl"))
        return {int(r["task_index"]): str(r["task"]) for r in rows}
    table = bounds.read(root / "meta" / "tasks.parquet")
    # pandas stores the task strings as the index; its column has no name of its own
    named = ("task", "__index_level_0__", *(c for c in table.column_names if c != "task_index"))
    text = next(c for c in named if c in table.column_names)
    return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))
