"""The disk fails at every single write: the recording ends, nothing committed is lost."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from episode_helpers import LOSSLESS, SPEC, record_episode, record_ticks, state
from failing_disk import (
    TICKS,
    FailingLayer,
    check_prefix,
    operations_of_one_episode,
    record_until_it_fails,
)

from episodes.errors import DiskFullError, RecordingError
from episodes.store import EpisodeStore


@pytest.mark.slow
def test_a_full_disk_at_every_write_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    total = operations_of_one_episode(tmp_path)
    assert total > 40
    for first in range(total):
        root = tmp_path / str(first)
        layer = FailingLayer()
        store = EpisodeStore.open(root, files=layer)
        kept = record_episode(store, TICKS)
        layer.operations, layer.first = 0, first
        error = record_until_it_fails(store)
        if error is None:  # fewer groups than the first time: how many there are is a matter of timing
            assert layer.operations <= first
        else:
            assert isinstance(error, DiskFullError), f"operation {first}"
            assert "\n" not in str(error)
            assert "free space" in str(error)
        layer.first = None  # somebody freed some space: the same store carries on
        store.recover()
        record_episode(store, TICKS)
        store.close()
        with EpisodeStore.open(root, files=FailingLayer()) as again:
            assert kept in again.ids()
            if "running" in again.ids():
                check_prefix(again)
            assert again.verify().ok
        shutil.rmtree(root)


def test_a_disk_error_surfaces_on_the_next_append(tmp_path: Path) -> None:
    layer = FailingLayer(errno.EIO)
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS)
        record_ticks(writer, 3)
        layer.first = 0
        with pytest.raises(RecordingError, match=r"Input/output error.*"):
            for tick in range(3, 100_000):
                writer.append("action", tick, tick, state(tick))
                threading.Event().wait(0.001)
        with pytest.raises(RecordingError):
            writer.end("success")
        writer.discard()
        layer.first = None
        assert list((store.root / "journals").iterdir()) == []


def test_a_real_file_size_limit_is_reported_like_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from episodes.store import EpisodeStore\n"
        "from episodes.errors import DiskFullError\n"
        "from episode_helpers import SPEC, LOSSLESS, record_ticks\n"
        "store = EpisodeStore.open(sys.argv[1])\n"
        "writer = store.begin(SPEC, config=LOSSLESS, episode_id='running')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n"
        "    for start in range(0, 2000, 4):\n"
        "        record_ticks(writer, 4, start)\n"
        "        time.sleep(0.005)\n"
        "    writer.end('success').wait(30)\n"
        "except DiskFullError as error:\n"
        "    print(error)\n"
    )
    here = Path(__file__).parent
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s"), str(here), str(here.parents[1])],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "no space left" in done.stdout, done.stderr
    with EpisodeStore.open(tmp_path / "s") as store:
        assert store.recovery.recovered == ["running"]
        check_prefix(store)
        assert len(store.read("running").streams["action"]) > 10
