"""A wall clock of the robot's own, which can be stepped without touching the machine's."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools.errors import UsageError

_SOURCE = Path(__file__).with_name("wall_clock.c")
_FILE = "wall-clock"


def missing() -> str:
    """What is missing here to have one; empty when nothing is."""
    return "" if shutil.which("cc") else "there is no C compiler (apt-get install gcc libc6-dev)"


def preloaded(directory: Path) -> Mapping[str, str]:
    """What processes inherit whose clock ``step`` moves; empty where it cannot be had. Raises UsageError."""
    if missing():
        return {}
    library = directory / "wall_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"cc cannot make {library}: {(done.stderr.splitlines() or ['no reason given'])[0]}")
    step(directory, 0)
    return {"LD_PRELOAD": str(library), "RATCHET_WALL_CLOCK": str(directory / _FILE)}


def step(directory: Path, seconds: int) -> None:
    """Set the wall clock of all processes below ``directory`` to the machine's plus ``seconds``."""
    with (directory / _FILE).open("r+b" if (directory / _FILE).exists() else "w+b", buffering=0) as file:
        file.write(struct.pack("<q", seconds * 1_000_000_000))
