"""The short way to an e-stop: the same word that the bus process reads, and the keys that raise it."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.bus_records import BusFiles, BusWords
from tools.emergency import raise_word, word_files
from tools.keyboard import Keyboard


@pytest.fixture
def words(tmp_path: Path) -> BusWords:
    """The words of a bench robot whose `--dir` is the test's directory."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return BusWords.create(BusFiles(run_dir, "follower").words)


def test_it_is_the_word_that_the_bus_process_reads(words: BusWords, tmp_path: Path) -> None:
    words.beat(77)
    words.clear(0)
    assert raise_word(tmp_path) == tmp_path / "run" / "follower.words"
    assert (words.estops, words.cleared, words.heartbeat_ns) == (1, 0, 77)
    words.raise_estop()
    assert raise_word(None, f"unix:{tmp_path}/control.sock") is not None
    assert raise_word(None, f"unix:{tmp_path}/run/control.sock") is not None
    assert (words.estops, words.heartbeat_ns) == (4, 77)


def test_no_robot_here_is_no_error(tmp_path: Path) -> None:
    assert raise_word(tmp_path) is None
    assert raise_word(None, "robot.example:7443") is None
    assert word_files(None, None) == [Path("/run/ratchet/follower.words")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "follower.words").write_bytes(b"short")
    assert raise_word(tmp_path) is None


def test_the_short_way_loads_nothing_heavy() -> None:
    code = "import tools.cli, tools.commands.stop, sys; print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert {"grpc", "numpy", "numba", "pydantic", "rich"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("pressed", [b" ", b"e", b"E", b"nn e", b"\x1b[C "])
async def test_a_key_raises_it_at_once_whoever_waits(pressed: bytes) -> None:
    ours, theirs = pty.openpty()
    raised: list[int] = []
    keys = Keyboard(theirs, lambda: raised.append(1))
    os.write(ours, pressed + b"\n")
    await asyncio.sleep(0.02)
    keys.feed()
    os.close(ours)
    os.close(theirs)
    assert raised == [1]


async def test_other_keys_do_not() -> None:
    ours, theirs = pty.openpty()
    raised: list[int] = []
    keys = Keyboard(theirs, lambda: raised.append(1))
    os.write(ours, b"snrq\n")
    await asyncio.sleep(0.02)
    keys.feed()
    assert await keys.next_key() == "success"
    os.close(ours)
    os.close(theirs)
    assert raised == []
