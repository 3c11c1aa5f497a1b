"""Starting a bench process and stopping it again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from hal.bench.control import BenchClient, BenchInfo
from hal.errors import BenchError

INFO_FILE = "bench.json"
_POLL_S = 0.02
_STOP_S = 5.0


class BenchHandle:
    """A bench process started by ``start_bench``; also a context manager that stops it."""

    def __init__(self, process: subprocess.Popen[bytes], info: BenchInfo) -> None:
        self.process = process
        self.info = info
        self.client = BenchClient(info.control)

    def stop(self) -> None:
        """End the process; safe to call twice."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_bench(
    directory: Path,
    seed: int = 0,
    width: int = 96,
    height: int = 96,
    baud: int = 1_000_000,
    prerendered: bool = False,
    timeout_s: float = 60.0,
) -> BenchHandle:
    """Start ``python -m hal.bench.process`` and wait until it is ready.

    With ``prerendered`` the cameras play a scene that is drawn once, whatever the arm does.
    Its log goes to ``directory/bench.log``; it ends when this process does. Raises BenchError when
    it dies or is not ready within ``timeout_s``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    info_path = directory / INFO_FILE
    info_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "hal.bench.process", "--dir", str(directory), "--seed", str(seed)]
    command += ["--width", str(width), "--height", str(height), "--baud", str(baud)]
    command += ["--parent-pid", str(os.getpid()), *(["--prerendered"] if prerendered else [])]
    log_path = directory / "bench.log"
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = (log_path.read_text(errors="replace").splitlines() or ["no reason given"])[-1]
            raise BenchError(f"the bench ended at its start: {last}", f"read {log_path}")
        if info_path.exists():
            try:
                return BenchHandle(process, BenchInfo.model_validate_json(info_path.read_text()))
            except (ValidationError, BenchError):
                process.kill()
                process.wait()
                raise
        time.sleep(_POLL_S)
    process.kill()
    process.wait()
    raise BenchError(f"the bench was not ready within {timeout_s:g} s", f"read {log_path}")
