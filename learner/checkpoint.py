"""Training checkpoints: one safetensors file, written beside and renamed, so that it is whole or absent.

Training goes on while one is written: the tensors are copied first, a thread does the rest.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from learner.errors import CheckpointError

_NAME = "checkpoint.safetensors"
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part."""
    with _atomic(path) as file:
        _write_all(file, memoryview(data))


@contextmanager
def _atomic(path: Path) -> Iterator[FileIO]:
    """A file that takes the place of ``path`` at the end, once it is on the disk; not at all on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    with FileIO(beside, "w") as file:
        yield file
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


class CheckpointWriter:
    """Writes the checkpoints of run ``run`` into ``folder`` behind the back of training, one at a time.

    The checkpoint before stays until the next one is on the disk. Use ``with``, or `wait` at the end.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.path = folder / _NAME
        self._run = run
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def save(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Copy ``tensors`` as the state after ``step`` steps, and begin to write them.

        Waits while an earlier checkpoint is being written. Raises CheckpointError when that one failed.
        """
        self.wait()
        self._copies = {name: _copy(value, self._copies.get(name)) for name, value in tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(step,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises CheckpointError when it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(
                f"{self.path} cannot be written ({error})",
                "free some space; the one before is intact",
            )

    def _write(self, step: int) -> None:
        try:
            with _atomic(self.path) as file:
                for part in _serialised(self._copies, {"step": step, "run": self._run}):
                    _write_all(file, part)
        except OSError as error:
            self._error = error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # what ended the run says more than what became of this


def _copy(value: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """A contiguous copy in the machine's memory, in the room of the copy before where that fits."""
    value = value.detach()
    if into is None or into.shape != value.shape or into.dtype != value.dtype:
        into = torch.empty(value.shape, dtype=value.dtype)
    return into.copy_(value)


def _serialised(tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]) -> Iterator[memoryview]:
    """The parts of a safetensors file: its length, its header, and every tensor's bytes in turn.

    Not by the package's own ``save``: that holds the interpreter, and so the training, while it copies.
    """
    header: dict[str, object] = {"__metadata__": {"run": json.dumps(about)}}
    at = 0
    for name, value in tensors.items():
        end = at + value.numel() * value.element_size()
        header[name] = {
            "dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for value in tensors.values():
        yield value.reshape(-1).view(torch.uint8).numpy().data


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
