"""Rows of a LeRobot set as Arrow tables: the columns, their types, and what LeRobot fills in itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.errors import ImportRefusedError
from episodes.lerobot.metadata import Feature

SCALAR_DTYPES = {
    "float32": pa.float32(), "float64": pa.float64(), "float16": pa.float16(), "bool": pa.bool_(),
    "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "string": pa.string(),
}  # fmt: skip
_SECONDS = 4e9  # more than a century: what fits into ns by far
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DEFAULTS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip


def column_type(feature: Feature) -> Any:
    """The Arrow type a feature's column has: scalars plain, vectors as lists of fixed size.

    Raises ImportRefusedError for a dtype LeRobot has no column for.
    """
    if feature.dtype == "image":
        return IMAGE
    if feature.dtype not in SCALAR_DTYPES:
        raise ImportRefusedError(f"feature {feature.key} has dtype {feature.dtype}", "leave it out")
    kind = SCALAR_DTYPES[feature.dtype]
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:  # what LeRobot calls Array2D and so on
        kind = pa.list_(kind)
    return kind


def schema(features: Mapping[str, Feature]) -> Any:
    """The schema of the data files: everything but videos, then LeRobot's own five columns."""
    fields = [(f.key, column_type(f)) for f in features.values() if f.dtype != "video"]
    return pa.schema(fields + [(k, SCALAR_DTYPES[v]) for k, v in DEFAULTS.items()])


def to_numbers(column: Any, feature: Feature) -> npt.NDArray[Any]:
    """A column as (rows, *shape) of the feature's dtype; missing numbers become NaN.

    Raises ImportRefusedError when it does not have that shape, or lacks whole numbers or truth values, or
    holds others than the dtype has: nothing is rounded or cut off.
    """
    rows = len(column)
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while hasattr(values, "storage"):
        values = values.storage
    try:
        while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
            if values.null_count or len(values.value_lengths().unique()) > 1:
                raise ValueError("its lists are of different lengths, or missing")
            values = values.flatten()
        if values.null_count and feature.dtype[:5] != "float":
            raise ValueError("values are missing")
        flat = _exactly(values.to_numpy(zero_copy_only=False), np.dtype(feature.dtype))
        shape = () if feature.shape == (1,) else feature.shape
        return flat.reshape(rows, *shape)
    except (ValueError, TypeError, pa.ArrowException, AttributeError) as error:
        raise ImportRefusedError(
            f"column {feature.key} is no {feature.dtype} of shape {feature.shape} ({error})",
            "check info.json",
        ) from error


def _exactly(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """``values`` as ``dtype``; into whole numbers only what is whole and fits. Raises ValueError."""
    if values.dtype == dtype or dtype.kind not in "iub":
        return values.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        out = values.astype(dtype)
    if values.dtype.kind not in "iufb" or not np.array_equal(out.astype(values.dtype), values):
        differing = np.flatnonzero(out != values)
        example = f", such as {values[differing[0]]!s:.30}" if len(differing) else ""
        raise ValueError(f"it holds {values.dtype} values that are none{example}")
    return out


def whole_numbers(table: Any, name: str) -> npt.NDArray[np.int64]:
    """A counter of LeRobot's own. Raises ImportRefusedError when it is no column of whole numbers."""
    return to_numbers(table[name], Feature(name, "int64", (1,), ()))


def seconds(table: Any, name: str) -> npt.NDArray[np.float64]:
    """Times, s. Raises ImportRefusedError when it is no column of numbers, or one is missing or absurd."""
    found = to_numbers(table[name], Feature(name, "float64", (1,), ()))
    if not (np.abs(found) < _SECONDS).all():  # NaN is not less either
        row = int(np.argmin(np.abs(found) < _SECONDS))
        raise ImportRefusedError(
            f"{name} is {found[row]:g} s in row {row}", "leave this episode out (--episodes)"
        )
    return found


def to_column(values: npt.NDArray[Any], feature: Feature) -> Any:
    """The Arrow array of (rows, *shape) numbers."""
    kind = column_type(feature)
    if feature.shape == (1,):
        return pa.array(values.reshape(-1), kind)
    if len(feature.shape) == 1:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), SCALAR_DTYPES[feature.dtype])
        return pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])
    return pa.array(values.tolist(), kind)


def bookkeeping(
    length: int, fps: float, episode: int, first_index: int, task: npt.NDArray[np.int64] | int
) -> dict[str, npt.NDArray[Any]]:
    """LeRobot's own columns of an episode: times index / fps, counters, tasks."""
    counter = np.arange(length, dtype=np.int64)
    return {
        "timestamp": (counter / fps).astype(np.float32),
        "frame_index": counter,
        "episode_index": np.full(length, episode, np.int64),
        "index": counter + first_index,
        "task_index": np.broadcast_to(np.asarray(task, np.int64), (length,)).copy(),
    }
