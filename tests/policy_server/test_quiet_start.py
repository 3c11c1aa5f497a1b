"""An engine process gives way while it imports, and is itself again afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policy_server.engine_process import EngineProcess
from policy_server.quietly import NICE

_GIVES_UP_S = 30.0

_MODULE = """
import os, threading
found = os.getpriority(os.PRIO_PROCESS, 0), threading.current_thread() is threading.main_thread()
def main(arguments):
    print(*found, os.getpriority(os.PRIO_PROCESS, 0), *arguments)
    return 7
"""


def _start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    return subprocess.run(
        [sys.executable, "-m", "policy_server.quietly", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_GIVES_UP_S,
        check=False,
    )


def test_the_import_gives_way_and_what_runs_then_does_not(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text(_MODULE)
    ended = _start(tmp_path, "slow_to_import", "12", "x")
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert ended.stdout.split() == [str(NICE), "False", str(usual), "12", "x"]
    assert ended.returncode == 7


def test_an_import_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such thing here')")
    ended = _start(tmp_path, "broken")
    assert ended.returncode == 1
    assert "no such thing here" in ended.stderr


def test_an_engine_process_starts_so() -> None:
    if os.getpriority(os.PRIO_PROCESS, 0) == NICE:
        pytest.skip("this process has given way already")
    engine = EngineProcess()
    try:
        begin, seen = time.monotonic(), False
        while not seen and time.monotonic() - begin < _GIVES_UP_S:
            seen = NICE in _nices(engine.pid)
            time.sleep(0.002)
        assert seen
        assert _nice(Path(f"/proc/{engine.pid}/task/{engine.pid}")) == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        engine.close()


def _nices(pid: int) -> set[int]:
    """Niceness of each thread of a process."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return {_nice(task) for task in tasks if task.exists()}


def _nice(task: Path) -> int:
    try:
        return int((task / "stat").read_text().rpartition(")")[2].split()[16])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile
