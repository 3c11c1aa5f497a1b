"""Training checkpoints: one safetensors file, written beside and renamed, so that it is whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from learner.errors import CheckpointError

_NAME = "checkpoint.safetensors"


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], step: int, run: str) -> Path:
    """Store ``tensors`` as the state after ``step`` steps of run ``run``. Returns the file's path."""
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    path = folder / _NAME
    write_atomic(path, save(flat, metadata={"run": json.dumps({"step": step, "run": run})}))
    return path


def load_checkpoint(folder: Path, run: str) -> tuple[dict[str, torch.Tensor], int] | None:
    """(tensors, step) of the checkpoint in ``folder``; None when there is none.

    Raises CheckpointError when it is damaged or was written by a run with another configuration.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})", "delete it to start the run afresh"
        ) from error
    if meta["run"] != run:
        raise CheckpointError(
            f"{path} belongs to run {meta['run'][:12]}, this is {run[:12]}",
            "use another folder, or delete it to start afresh",
        )
    return tensors, int(meta["step"])
