"""One service per run directory and per socket: two would command one arm through the same rings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import RuntimeFault

_LOCK_FILE = "service.lock"


class InUseError(RuntimeFault):
    """Another service has the run directory or the address, or it cannot be used at all."""


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir`` for this process; the kernel lets go of it however the process ends.

    Raises InUseError when another process has it, or it cannot be written.
    """
    path = run_dir / _LOCK_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InUseError(
            f"cannot use the run directory {run_dir} ({error.strerror})", "set run_dir to one you may write"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise InUseError(
                f"a robot service already runs in {run_dir} (process {holder})",
                "stop it first, or give this one another run_dir",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def require_free_socket(address: str) -> None:
    """Raise InUseError when somebody listens on a unix socket: gRPC would quietly take it over.

    What a killed service left behind is removed by gRPC itself. TCP addresses are checked by binding.
    """
    if not address.startswith("unix:"):
        return
    path = address.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise InUseError(
                f"cannot listen on {address} ({error.strerror or error})",
                "choose another [remote] address; a socket's path has at most 107 bytes",
            ) from error
    raise InUseError(f"another program listens on {address}", "stop it, or choose another [remote] address")
