"""The space bar and ``e`` stop the arm while a verb that moves it holds the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator

from runtime.remote.client import RobotClient
from runtime.remote.errors import RemoteError
from tools.console import say
from tools.emergency import raise_word
from tools.keyboard import keyboard
from tools.robot_door import Door

HINT = "space bar or e: emergency stop; "
_REASON = "e-stop at the keyboard"


def emergency(door: Door, robot: RobotClient) -> Callable[[], None]:
    """What a key press does: the shared word first where the robot is on this machine, then gRPC."""
    telling: set[asyncio.Task[None]] = set()

    async def tell(written: bool) -> None:
        try:
            await robot.estop(_REASON)
        except RemoteError as error:
            say(f"the service was not told: {error}" if written else f"NOT STOPPED: {error}")

    def press() -> None:
        written = raise_word(door.run_dir, door.address) is not None
        say("EMERGENCY STOP")
        task = asyncio.get_running_loop().create_task(tell(written))
        telling.add(task)
        task.add_done_callback(telling.discard)

    return press


@contextlib.contextmanager
def emergency_keys(door: Door, robot: RobotClient) -> Iterator[str]:
    """Listen for the keys within a running event loop; yields the hint, empty without a terminal."""
    if not sys.stdin.isatty():
        yield ""
        return
    with keyboard(emergency(door, robot)):
        yield HINT
