"""`ratchet record` with a clock, a demonstrator and a terminal; `ratchet replay`."""

from __future__ import annotations

import asyncio
import itertools
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
import tomllib

import numpy as np
import pytest

from episodes.store import EpisodeStore
from runtime.nouns import Source
from runtime.ring import RingReader, frame_dtype
from tests.tools.acting import TIMEOUT_S, call, call_json, leader_to_arm
from tools.errors import UsageError
from tools.sim import SimRobot

pytestmark = pytest.mark.slow


def rows(sim: SimRobot, ids: list[str]) -> dict[str, tuple[str, str]]:
    """Task and outcome of each published episode among ``ids``."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
            found = {
                row["id"]: (row["task"], row["outcome"]) for row in store.query("SELECT * FROM episodes")
            }
        if set(ids) <= set(found) or time.monotonic() > deadline:
            return {i: found[i] for i in ids}
        time.sleep(0.05)


def test_episodes_of_a_fixed_length_need_no_terminal(sim: SimRobot) -> None:
    leader_to_arm(sim)
    kept = call_json(
        *("record", "--dir", sim.paths.run_dir, "--task", "by the clock", "--episodes", "2"),
        *("--episode-seconds", "0.6", "--reset-seconds", "0", "--outcome", "failure", "--json"),
    )
    assert len(kept) == 2
    assert set(rows(sim, [e["id"] for e in kept]).values()) == {("by the clock", "failure")}


def test_without_a_terminal_and_a_length_nothing_is_recorded(sim: SimRobot) -> None:
    result = call("record", "--dir", sim.paths.run_dir, "--task", "x", "--episodes", "1")
    assert isinstance(result.exception, UsageError)
    assert "--episode-seconds" in str(result.exception)


def test_a_demonstration_is_recorded_and_replayed(sim: SimRobot) -> None:
    (kept,) = call_json(
        *("record", "--dir", sim.paths.run_dir, "--task", "cube", "--episodes", "1"),
        *("--demonstrator", "--seed", "5", "--json"),
    )
    assert kept["outcome"] == "success"
    rows(sim, [kept["id"]])
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        actions = store.read(kept["id"]).streams["action"].values
    sim.bench.reset(5)  # else the cube of the demonstration stands where it puts one down
    result = call("replay", kept["id"], "--dir", sim.paths.run_dir)
    assert result.exit_code == 0, result.exception
    goal = np.array(call_json("status", "--dir", sim.paths.run_dir, "--json")["goal"])
    # The arm is being let down by now, slowly: it is still near where the replay ended.
    assert np.abs(goal - actions[-1]).max() < 0.4
    unknown = call("replay", "nothing", "--dir", sim.paths.run_dir)
    assert "no episode" in str(unknown.exception)


class Terminal:
    """A shell's end of a terminal in which `ratchet record` runs."""

    def __init__(self, *arguments: str) -> None:
        self.end, inner = pty.openpty()
        self.before = termios.tcgetattr(inner)
        self.inner = inner
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", *arguments], stdin=inner, stdout=inner, stderr=inner
        )

    def expect(self, text: str) -> None:
        """Read on until ``text`` has appeared; what came before it is forgotten."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not appear; instead {self.seen!r}"
            if select.select([self.end], [], [], 0.1)[0]:
                self.seen += os.read(self.end, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def press(self, keys: bytes) -> None:
        os.write(self.end, keys)

    def close(self) -> int:
        """The exit status; the process must end by itself."""
        status = self.process.wait(TIMEOUT_S)
        os.close(self.inner)
        os.close(self.end)
        return status


def test_lerobots_keys_and_the_terminal_as_it_was(sim: SimRobot) -> None:
    terminal = Terminal("record", "--dir", str(sim.paths.run_dir), "--task", "by keys", "--episodes", "5")
    terminal.expect("episode 1")
    terminal.press(b"n")
    terminal.expect("recording")
    time.sleep(0.3)
    terminal.press(b"\x1b[D")  # ←: this one again
    terminal.expect("episode 1")
    terminal.press(b"\x1b[C")  # →
    terminal.expect("recording")
    time.sleep(0.3)
    terminal.press(b"s")
    terminal.expect("kept ")
    terminal.expect("success")
    terminal.expect("episode 2")
    terminal.press(b"n")
    terminal.expect("recording")
    terminal.press(b"f")
    terminal.expect("failure")
    terminal.expect("episode 3")
    terminal.press(b"s")  # too late for another verdict
    terminal.expect("never changes")
    terminal.press(b"r")  # but the failure can be recorded again
    terminal.expect("threw ")
    terminal.expect("episode 2")
    terminal.press(b"r")
    terminal.expect("no last episode")
    terminal.expect("episode 2")
    terminal.press(b"n")
    terminal.expect("recording")
    terminal.press(b"f")
    terminal.expect("failure")
    terminal.expect("episode 3")
    terminal.press(b"\x1b")  # Escape alone
    terminal.expect("2 of 5 episodes kept")
    flags = termios.tcgetattr(terminal.inner)
    assert flags[3] == terminal.before[3], "echo and line mode are back"
    assert terminal.close() == 0
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        found = store.query("SELECT outcome FROM episodes WHERE task = 'by keys' ORDER BY id")
    assert sorted(row["outcome"] for row in found) == ["failure", "success"]


async def test_what_just_happened_is_kept_although_nothing_was_recorded(sim: SimRobot) -> None:
    async with sim.client() as robot, robot.control("test") as control:
        await control.enable()
        await control.set_mode("teleop")
        await asyncio.sleep(1.5)
        asked_ns = time.monotonic_ns()
        assert (await robot.state()).episode == ""
        reply = await control.keep_last("what just happened", "failure")
        assert (await robot.state()).mode == "teleop", "the arm goes on"
        await asyncio.sleep(0.3)  # else there may be no tick yet since then
        again = await control.keep_last("and once more, a moment later", "failure")
        await control.set_mode("hold")
    assert rows(sim, [reply.id])[reply.id] == ("what just happened", "failure")
    assert again.frames < reply.frames, "nothing is kept twice"
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        episode = store.read(reply.id)
    ticks = episode.streams["observation.state"]
    assert len(ticks) == reply.frames
    assert 30 <= len(ticks) <= 5.5 * 30
    assert ticks.t_ns[-1] > asked_ns - 1e9, "up to the present"
    assert asked_ns - ticks.t_ns[0] < 5.6e9, "and no longer than it was told"
    assert len(episode.streams["bus.position"]) > 2 * len(ticks)
    assert set(episode.streams["tick.source"].values[-10:].tolist()) == {int(Source.TELEOP)}
    for camera in episode.cameras:
        frames = episode.frames(camera)
        assert len(frames) > 10
        assert frames[len(frames) - 1].std() > 1.0, "a picture of the scene"


def test_k_keeps_the_last_seconds_between_episodes(sim: SimRobot) -> None:
    terminal = Terminal("record", "--dir", str(sim.paths.run_dir), "--task", "by k", "--episodes", "5")
    terminal.expect("episode 1")
    time.sleep(0.5)
    terminal.press(b"k")
    terminal.expect("the last ")
    terminal.press(b"q")
    terminal.expect("and the last seconds 1 times")
    assert terminal.close() == 0


def test_stopped_from_elsewhere_it_counts_what_was_kept_and_goes_on_next_time(sim: SimRobot) -> None:
    arguments = ("record", "--dir", str(sim.paths.run_dir), "--task", "in two parts", "--episodes", "3")
    terminal = Terminal(*arguments)
    terminal.expect("episode 1")
    terminal.press(b"n")
    terminal.expect("recording")
    time.sleep(0.3)
    assert call("stop", "--dir", sim.paths.run_dir).exit_code == 0
    terminal.expect("1 of 3 episodes kept")
    assert terminal.close() != 0
    terminal = Terminal(*arguments)
    terminal.expect("1 of 3 are kept")
    terminal.expect("episode 2")
    terminal.press(b"q")
    terminal.expect("1 of 3 episodes kept")
    assert terminal.close() == 0


def test_killed_in_an_episode_it_is_kept_as_unknown_and_the_next_session_just_goes_on(sim: SimRobot) -> None:
    arguments = ("record", "--dir", str(sim.paths.run_dir), "--task", "killed", "--episodes", "3")
    terminal = Terminal(*arguments)
    terminal.expect("episode 1")
    terminal.press(b"n")
    terminal.expect("recording")
    time.sleep(0.5)
    terminal.process.kill()
    terminal.close()
    terminal = Terminal(*arguments)  # at once: the dead session's control has not run out yet
    terminal.expect("episode 1")
    terminal.press(b"n")
    terminal.expect("recording")
    time.sleep(0.3)
    terminal.press(b"f")
    terminal.expect("failure")
    terminal.expect("episode 2")
    terminal.press(b"q")
    terminal.expect("1 of 3 episodes kept")
    assert terminal.close() == 0
    deadline = time.monotonic() + TIMEOUT_S
    found: list[tuple[str, str]] = []
    while len(found) < 2 and time.monotonic() < deadline:
        with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
            found = [
                (row["outcome"], row["reason"])
                for row in store.query("SELECT * FROM episodes WHERE task = 'killed' ORDER BY id")
            ]
        time.sleep(0.1)
    assert [outcome for outcome, _ in found] == ["unknown", "failure"]
    assert "control lost" in found[0][1]


class Published(threading.Thread):
    """Numbers of the pictures that a camera process publishes, as another reader of its ring sees them."""

    def __init__(self, sim: SimRobot, camera: str) -> None:
        super().__init__(daemon=True)
        spec = tomllib.loads(sim.config_path.read_text())["cameras"][camera]
        ring = sim.paths.run_dir / "run" / f"camera.{camera}.frames"
        self.reader = RingReader(ring, frame_dtype(spec["height"], spec["width"]))
        self.camera = camera
        self.seen: dict[int, int] = {}  # seq → t_ns
        self.over = threading.Event()

    def run(self) -> None:
        index = self.reader.head - 1
        while not self.over.wait(0.02):
            first, records = self.reader.since(index)
            self.seen.update(zip(records["seq"].tolist(), records["t_ns"].tolist(), strict=True))
            index = first + len(records) - 1


async def test_no_picture_that_was_published_while_recording_is_missing(sim: SimRobot) -> None:
    async with sim.client() as robot, robot.control("test") as control:
        await control.enable()
        await control.set_mode("teleop")
        await control.start_episode("every picture")
        await asyncio.sleep(0.2)
        readers = [
            Published(sim, path.name.split(".")[1])
            for path in (sim.paths.run_dir / "run").glob("camera.*.frames")
        ]
        for reader in readers:
            reader.start()
        await asyncio.sleep(2.0)
        for reader in readers:
            reader.over.set()
            reader.join()
        await asyncio.sleep(0.3)
        reply = await control.end_episode("success")
        await control.set_mode("hold")
    rows(sim, [reply.id])
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        episode = store.read(reply.id)
    ticks = episode.streams["observation.state"].t_ns
    stalls = [(a, b) for a, b in itertools.pairwise(ticks.tolist()) if b - a > 0.2e9]  # the ring holds 0.25 s
    assert readers
    for reader, camera in ((r, r.camera) for r in readers):
        recorded = set(episode.frames(camera).seq.tolist())
        missing = {seq: t_ns for seq, t_ns in reader.seen.items() if seq not in recorded}
        assert len(reader.seen) > 10
        assert [t for t in missing.values() if not any(a - 0.3e9 < t < b for a, b in stalls)] == []
