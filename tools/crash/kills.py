"""SIGKILL at random instants: while recording, while publishing, while recovering from the last one."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from episodes.files import FileLayer
from tools.crash.checks import Expected, Tallied, check
from tools.crash.recording import EPISODE_S, Tally, record_until_killed

_STORE_OF = 20  # kills a store lives through; a fresh one then keeps the verification of all of it short
_ASIDE = (
    0.3  # of the kills are looked at in a copy: the next recorder recovers itself, and may be killed at it
)


def run_kills(folder: Path, kills: int, seed: int, progress: Callable[[int], None]) -> Tallied:
    """Kill ``kills`` recorders on stores below ``folder``; what was found after each."""
    context = multiprocessing.get_context("forkserver")  # recorders start in milliseconds
    context.set_forkserver_preload(["tools.crash.recording"])
    rng = random.Random(seed)
    total = Tallied()
    waiting: list[Expected] = []
    tally_path = folder / "tally"
    for kill in range(kills):
        root = folder / f"store-{kill // _STORE_OF}"
        tally = Tally(tally_path, create=True)
        victim = context.Process(target=record_until_killed, args=(str(root), str(tally_path), kill))
        victim.start()
        time.sleep(rng.uniform(0.0, EPISODE_S * 3))
        victim.kill()
        crash_ns = time.monotonic_ns()
        victim.join()
        total.crashes += 1
        waiting += [Expected(name, at, n, done, crash_ns) for name, at, n, done in tally.rows()]
        tally.close()
        last = kill + 1 == kills or (kill + 1) % _STORE_OF == 0
        if last or rng.random() > _ASIDE:
            check(root, waiting, total, FileLayer(), f"kill {kill}")
            waiting = [e for e in waiting if e.promised]  # these are looked at until the store is done with
        else:
            _check_copy(root, folder / "copy", waiting, total, f"kill {kill}")
        if last:
            waiting = []
            shutil.rmtree(root, ignore_errors=True)
        progress(kill + 1)
    return total


def _check_copy(root: Path, copy: Path, waiting: list[Expected], total: Tallied, label: str) -> None:
    """Look at a copy of the store; the store itself stays as the kill left it."""
    if root.is_dir():  # else it was killed before it had made one
        shutil.copytree(root, copy)
    recovered = (total.recovered, total.recovered_h264)
    check(copy, waiting, total, FileLayer(), f"{label} (copy)")
    total.recovered, total.recovered_h264 = recovered  # they are counted when the store itself is looked at
    shutil.rmtree(copy)
