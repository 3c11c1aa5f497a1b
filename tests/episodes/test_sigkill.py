"""A recorder killed at random instants: the store opens, all that was published verifies, and the running
episode is there up to its last committed group."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from episode_helpers import state

from episodes.draft import read_journal
from episodes.store import EpisodeStore

KILLS = 15

RECORDER = """
import os, sys, time
sys.path[:0] = sys.argv[2:]
from episodes.files import FileLayer
from episodes.store import EpisodeStore
from episode_helpers import LOSSLESS, SPEC, record_ticks

class Telling(FileLayer):
    def datasync(self, fd):
        super().datasync(fd)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).removesuffix(".journal")
        os.write(1, f"committed {name} {os.fstat(fd).st_size}\\n".encode())

store = EpisodeStore.open(sys.argv[1], files=Telling())
os.write(1, b"ready\\n")
while True:
    writer = store.begin(SPEC, config=LOSSLESS, started_ns=0)
    for start in range(0, 60, 4):
        record_ticks(writer, 4, start)
        time.sleep(0.004)
    meta = writer.end("success", "done").wait()
    os.write(1, f"published {meta.id} {meta.ticks}\\n".encode())
"""


def run_and_kill(root: Path, delay_s: float) -> list[list[str]]:
    """What the recorder said until it was killed ``delay_s`` after it was ready."""
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(root), str(here), str(here.parents[1])], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
    finally:
        child.send_signal(signal.SIGKILL)
        said = child.stdout.read()
        child.wait()
        child.stdout.close()
    return [line.split() for line in said.decode().splitlines() if line.strip()]


def committed_rows(root: Path, said: list[list[str]], scratch: Path) -> dict[str, int]:
    """Rows known to be on the disk of each episode whose journal is still there."""
    rows = {}
    for word, name, size in (line for line in said if len(line) == 3):
        journal = root / "journals" / f"{name}.journal"
        if word != "committed" or not journal.exists():
            continue
        scratch.write_bytes(journal.read_bytes()[: int(size)])
        draft = read_journal(scratch).draft
        assert draft is not None
        rows[name] = len(draft.stream_rows(1))
    return rows


@pytest.mark.slow
def test_nothing_committed_is_lost_over_many_kills(tmp_path: Path) -> None:
    root = tmp_path / "store"
    rng = random.Random(7)
    published: set[str] = set()
    recovered = 0
    for _ in range(KILLS):
        said = run_and_kill(root, rng.uniform(0.0, 0.4))
        promised = committed_rows(root, said, tmp_path / "scratch")
        published |= {line[1] for line in said if line[0] == "published"}
        shutil.rmtree(tmp_path / "before", ignore_errors=True)
        shutil.copytree(root, tmp_path / "before")
        with EpisodeStore.open(root) as store:
            assert published <= set(store.ids())
            assert store.verify(deep=True).ok
            assert store.recovery.damaged == []
            recovered += len(store.recovery.recovered)
            for name, rows in promised.items():
                if rows:
                    assert len(store.read(name).streams["action"]) >= rows
            for episode_id in store.ids():
                check(store, episode_id, whole=episode_id in published)
    assert len(published) >= 3
    assert recovered >= 3


def check(store: EpisodeStore, episode_id: str, whole: bool) -> None:
    episode = store.read(episode_id)
    data = episode.streams["observation.state"]
    np.testing.assert_array_equal(data.values, np.reshape([state(t) for t in range(len(data))], (-1, 6)))
    frames = episode.frames("front")
    np.testing.assert_array_equal(frames.seq, np.arange(len(frames)))
    if len(frames):
        assert frames[len(frames) - 1].shape == (24, 32, 3)
    if whole:
        assert (len(data), len(frames), episode.meta.recovered) == (60, 60, False)
    elif episode.meta.recovered:
        assert episode.meta.outcome == "unknown"
        assert episode.meta.reason == "recovered after a crash"
