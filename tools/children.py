"""Child processes that never outlive their parent: bench and policy server of a simulated robot."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.errors import UsageError

_ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.02


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Children started inside do not hear the terminal's Ctrl-C: their parent ends them in its own order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A Python module running as a process, its output in a log file; ``env`` is added to ours."""

    def __init__(
        self, name: str, arguments: list[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, deaf_to_interrupts():
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env={**os.environ, **(env or {})},
            )

    def wait_for_socket(self, path: Path, timeout_s: float = 60.0) -> None:
        """Return when it listens at ``path``. Raises UsageError as ``wait_until``."""
        self.wait_until(lambda: _listening(path), timeout_s)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Return when ``condition`` holds. Raises UsageError with its last words when it ends instead."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise UsageError(f"the {self.name} ended at its start: {self.last_line()}")
            if time.monotonic() > deadline:
                self.stop()
                raise UsageError(f"the {self.name} was not ready in {timeout_s:g} s; read {self.log}")
            time.sleep(_POLL_S)

    def last_line(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"nothing in {self.log}")

    def stop(self, timeout_s: float = 10.0) -> int:
        """Ask it to end, kill it when it does not; its exit status. Safe to call twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
