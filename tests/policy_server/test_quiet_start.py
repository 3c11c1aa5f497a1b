"""An engine process gives way while it imports, and is itself again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from policy_server import loader
from policy_server.claim import can_come_back
from policy_server.engine_process import EngineProcess
from policy_server.errors import RefusedBundleError
from policy_server.loading import Loaded
from policy_server.quietly import NICE
from policy_server.standing import Standing

T = TypeVar("T")

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


def test_what_is_loaded_beside_others_computes_in_spare_time_until_it_is_ready(place: Any) -> None:
    if not _in_an_ordinary_thread(can_come_back):
        pytest.skip("a thread here may not leave spare time again")
    engine = _in_an_ordinary_thread(lambda: EngineProcess(aside=True))
    try:
        assert _policies(engine.pid) == {os.SCHED_IDLE}
        opened = engine.open(place.bundle("a").path, place.trust)
        assert _policies(engine.pid) == {os.SCHED_IDLE}
        engine.load(opened, "onnx", place.config())
        assert _policies(engine.pid) == {os.SCHED_OTHER}
    finally:
        engine.close()
    # Nobody should wait for the kernel to take its memory back.
    assert _policies(engine.pid) <= {os.SCHED_IDLE}


def test_nothing_is_put_aside_while_nothing_serves(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def refuse(*arguments: Any) -> Loaded:
        asked.append(arguments[-1])
        raise RefusedBundleError("enough seen")

    monkeypatch.setattr(loader, "load_slot", refuse)

    async def load() -> None:
        answers = iter((False, True))
        one = loader.Loader(place.config(), lambda *_: None, lambda: next(answers), Standing())
        for _ in range(2):
            with pytest.raises(RefusedBundleError, match="enough"):
                await one.load(str(place.root / "bundles" / "a"), "onnx")
        one.close()

    asyncio.run(load())
    assert asked == [False, True]


def _in_an_ordinary_thread(work: Callable[[], T]) -> T:
    """As a server's loader runs it, whatever this process computes at."""

    def ordinary() -> None:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    with ThreadPoolExecutor(1, initializer=ordinary) as thread:
        return thread.submit(work).result()


def _policies(pid: int) -> set[int]:
    """How each thread of a process is scheduled."""
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(int(task)))
    return found


def _nices(pid: int) -> set[int]:
    """Niceness of each thread of a process."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return {_nice(task) for task in tasks if task.exists()}


def _nice(task: Path) -> int:
    try:
        return int((task / "stat").read_text().rpartition(")")[2].split()[16])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile
