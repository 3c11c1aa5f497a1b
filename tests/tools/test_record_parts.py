"""The parts of `ratchet record` that need no robot: pedal, panel, the note of an unfinished session."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.errors import RemoteError
from tools.commands.record import record
from tools.errors import UsageError
from tools.keyboard import Key, Keyboard
from tools.pedal import check_source, pedal
from tools.record_notes import SessionNote
from tools.record_panel import fields
from tools.recording import ClockDirector, KeyDirector, Ready, Verdict, record_session


async def test_a_fifo_is_a_pedal_through_any_number_of_writers(tmp_path: Path) -> None:
    path = tmp_path / "pedal"
    os.mkfifo(path)
    stopped = asyncio.Event()
    keys = Keyboard(emergency=stopped.set)
    async with pedal(str(path), keys), asyncio.timeout(20):
        for line, key in (("success\n", "success"), ("\n", "next"), ("nonsense\nredo\n", "redo")):
            with path.open("w") as writer:
                writer.write(line)
            assert await keys.next_key() == key
        with path.open("w") as writer:
            writer.write("estop\n")
        await stopped.wait()


async def test_a_program_is_a_pedal_and_ends_with_the_session() -> None:
    keys = Keyboard()
    async with pedal("echo failure; echo; exec sleep 1000", keys), asyncio.timeout(20):
        assert await keys.next_key() == "failure"
        assert await keys.next_key() == "next"


def test_what_can_be_no_pedal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x")
    with pytest.raises(UsageError, match="mkfifo"):
        check_source(str(path))
    check_source("evtest /dev/input/event3 | grep -o next")


async def test_keeping_the_last_seconds_does_not_begin_an_episode() -> None:
    keys, kept = Keyboard(), []

    async def keep() -> None:
        kept.append(1)
        keys.press("next")

    director = KeyDirector(keys, "success", keep)
    asyncio.get_running_loop().call_later(0.05, keys.press, "keep")
    assert await director.prepare(0) == "begin"
    assert kept == [1]
    await director.begun(0)
    for key in ("keep", "failure"):
        keys.press(key)
    assert (await director.verdict()).outcome == "failure"


def test_the_panel_says_rate_drops_disk_and_what_is_left() -> None:
    state = pb.RobotState(episode="e", recent_flags=[pb.FlagMessage(kind="stall", score=2.0)])
    state.loop.period_ms_p50 = 33.3
    state.recording.seconds, state.recording.frames, state.recording.dropped = 3.0, 180, 2
    state.recording.bytes_per_s, state.recording.disk_free = 4e6, 2_000_000_000
    shown = fields(state)
    assert shown["episode"] == "3.0 s, 180 pictures"
    assert shown["rate"].startswith("30.0 Hz")
    assert shown["drops"].startswith("2 dropped")
    assert shown["disk"] == "2.0 GB free, 4.0 MB/s, 8 min left  RUNNING OUT"
    assert shown["flags"] == "stall (2.0)"


def test_an_unfinished_session_is_remembered_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "state" / "record.json"
    note = SessionNote(path, "unix:/x", "pick")
    assert note.kept() == 0
    note.set(12)
    assert SessionNote(path, "unix:/x", "pick").kept() == 12
    assert SessionNote(path, "unix:/x", "place").kept() == 0
    note.set(0)
    assert note.kept() == 0
    path.write_text("torn")
    assert note.kept() == 0


@pytest.mark.parametrize("task", ["", "x" * 201, "two\nlines"])
def test_a_task_is_one_short_line(task: str) -> None:
    done = CliRunner().invoke(record, ["--task", task, "--episodes", "1"])
    assert done.exit_code == 2
    assert "one line" in done.output


class Pause:
    """A robot that records without trouble; what is thrown away is remembered."""

    def __init__(self) -> None:
        self.begun = 0
        self.thrown: list[str] = []

    async def state(self) -> pb.RobotState:
        return pb.RobotState(mode="teleop", episode=f"e{self.begun}")

    async def start_episode(self, task: str) -> pb.EpisodeReply:
        self.begun += 1
        return pb.EpisodeReply(id=f"e{self.begun}")

    async def end_episode(self, outcome: str, reason: str) -> pb.EpisodeReply:
        return pb.EpisodeReply(id=f"e{self.begun}")

    async def throw_away(self, episode: str) -> pb.EpisodeReply:
        self.thrown.append(episode)
        return pb.EpisodeReply(id=episode)


class Scripted(KeyDirector):
    """A person with a list of what to press in the pauses; in an episode it is always →."""

    def __init__(self, keys: Keyboard, pauses: list[Key]) -> None:
        async def keep() -> None: ...

        super().__init__(keys, "success", keep)
        self.keys, self.pauses = keys, pauses

    async def prepare(self, number: int) -> Ready:
        asyncio.get_running_loop().call_soon(self.keys.press, self.pauses.pop(0))
        return await super().prepare(number)

    async def verdict(self) -> Verdict:
        self.keys.press("next")
        return await super().verdict()


async def test_the_last_episode_is_recorded_again_from_the_pause() -> None:
    robot: Any = Pause()
    kept: list[str] = []
    director = Scripted(Keyboard(), ["redo", "next", "next", "redo", "redo", "next", "stop"])
    async with asyncio.timeout(60):
        count = await record_session(
            *(robot, robot, director, "x", 9, asyncio.Event()),
            lambda episode, _: kept.append(episode),
            undone=kept.remove,
        )
    assert robot.thrown == ["e2"], "once each, and nothing before the first"
    assert kept == ["e1", "e3"]
    assert count == 2


async def test_another_verdict_in_the_pause_comes_too_late_and_is_told_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = Keyboard()
    director = Scripted(keys, ["success"])
    asyncio.get_running_loop().call_later(0.1, keys.press, "next")
    assert await director.prepare(1) == "begin"
    assert "never changes" in capsys.readouterr().err


class BrokenDisk:
    """A robot whose recording stops at the second look; ends are refused, as nothing runs."""

    def __init__(self) -> None:
        self.looks = 0

    async def state(self) -> pb.RobotState:
        self.looks += 1
        full = "no space left to write e.journal"
        return pb.RobotState(mode="teleop", episode="e" if self.looks < 2 else "", reason=full)

    async def start_episode(self, task: str) -> pb.EpisodeReply:
        return pb.EpisodeReply(id="e")

    async def end_episode(self, outcome: str, reason: str) -> pb.EpisodeReply:
        raise RemoteError("no episode is running")


async def test_a_full_disk_is_told_while_the_operator_still_works() -> None:
    robot: Any = BrokenDisk()
    director = ClockDirector(60.0, 0.0, "success")
    async with asyncio.timeout(20):
        with pytest.raises(UsageError, match=r"^recording stopped: no space left"):
            await record_session(robot, robot, director, "x", 1, asyncio.Event(), lambda *_: None)
