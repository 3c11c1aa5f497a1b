"""Two loops as other robot programs write them, timed beside ours: ``python -m tools.bench.peers KIND``.

They do nothing but keep time, which flatters them: ours is measured with all its work. ``relative_sleep``
sleeps what is left of its period after the work (LeRobot on Linux); whatever it oversleeps is lost for
ever. ``sleep_spin`` sleeps to 1 ms before an absolute deadline and spins the rest (diffusion_policy's
``precise_sleep``). Both run until SIGTERM, then print their figures as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.common import quantile

KINDS = ("relative_sleep", "sleep_spin")
PERIOD_S = 1 / 30
SPIN_S = 0.001
_STOP_S = 10.0


class Peer:
    """A loop as a process of its own; ``stop`` ends it and returns what it measured of itself."""

    def __init__(self, argument: str, module: str = "tools.bench.peers") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )

    def stop(self) -> dict[str, Any]:
        """Its figures; empty when it had died."""
        self._process.terminate()
        try:
            output, _ = self._process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
        figures: dict[str, Any] = json.loads(output) if output.strip() else {}
        return figures


def relative_sleep(begun: float, wake: float, tick: int) -> float:
    """Sleep for what is left of the period that began at ``wake``."""
    time.sleep(max(0.0, PERIOD_S - (time.monotonic() - wake)))
    return time.monotonic()


def sleep_spin(begun: float, wake: float, tick: int) -> float:
    """Sleep towards the ``tick``-th deadline after ``begun``, then spin."""
    deadline = begun + tick * PERIOD_S
    left = deadline - time.monotonic()
    if left > SPIN_S:
        time.sleep(left - SPIN_S)
    while time.monotonic() < deadline:
        pass
    return time.monotonic()


def run(wait: Callable[[float, float, int], float], ended: Callable[[], bool]) -> dict[str, float]:
    """Tick until ``ended``; lateness against the ideal grid and against the loop's own last tick."""
    late, uneven = [], []
    cpu = time.process_time()
    begun = wake = time.monotonic()
    tick = 0
    while not ended():
        tick += 1
        now = wait(begun, wake, tick)
        late.append((now - begun - tick * PERIOD_S) * 1e3)
        uneven.append((now - wake - PERIOD_S) * 1e3)
        wake = now
    seconds = max(wake - begun, 1e-9)
    return {
        "ticks": tick,
        **{f"lateness_ms_{name}": quantile(late, q) for name, q in _QUANTILES},
        "lateness_ms_max": round(max(late, default=0.0), 4),
        **{f"period_error_ms_{name}": quantile(np.abs(uneven).tolist(), q) for name, q in _QUANTILES},
        "drift_ms_per_minute": round((late[-1] if late else 0.0) * 60 / seconds, 3),
        "cpu_percent": round(100 * (time.process_time() - cpu) / seconds, 2),
    }


_QUANTILES = (("p50", 50.0), ("p99", 99.0), ("p999", 99.9))


def main(kind: str) -> None:
    """Run one kind until SIGTERM or the parent's end."""
    ended: list[int] = []
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait = {"relative_sleep": relative_sleep, "sleep_spin": sleep_spin}[kind]
    sys.stdout.write(json.dumps(run(wait, lambda: bool(ended) or os.getppid() != parent)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
