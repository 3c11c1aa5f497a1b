"""What the demo prints, how it starts `ratchet` commands, and what it remembers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.demo.plan import Plan
from tools.errors import UsageError


@dataclass
class Demo:
    """One run: its folders, its plan, its console, and the figures it collects."""

    out: Path
    plan: Plan
    runner: asyncio.Runner
    console: Console = field(default_factory=lambda: _console())
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def store(self) -> Path:
        """Where everything recorded ends up."""
        return self.out / "episodes"

    def robot(self, name: str) -> Path:
        """Run directory of one start of the simulated robot."""
        return self.out / "robot" / name

    @property
    def keys(self) -> Path:
        """The demo's own signing key, trusted by its own servers only."""
        return self.out / "keys"

    @property
    def work(self) -> Path:
        """The learner's folder: ledger, tracking database, bundles, rounds."""
        return self.out / "learner"

    @contextmanager
    def stage(self, number: int, title: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.console.rule(f"[bold]{number} · {title}", align="left")
        began = time.monotonic()
        yield
        self.seconds[f"{number} {title}"] = time.monotonic() - began
        self.console.print(f"[dim]   {time.monotonic() - began:.0f} s[/dim]")

    def say(self, text: str) -> None:
        """One line of the story."""
        self.console.print(f"   {text}", highlight=False, soft_wrap=True)

    def ratchet(self, *arguments: object) -> None:
        """Run a `ratchet` command as a user would; its progress goes to this terminal.

        Raises UsageError when it fails (it has said why itself).
        """
        command = [str(a) for a in arguments]
        self._show(command)
        done = subprocess.run(ratchet_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            raise UsageError(
                f"ratchet {command[0]} failed (exit status {done.returncode}); its message is above"
            )

    def _show(self, command: list[str]) -> None:
        shown = " ".join(_short(command, self.out))
        self.console.print(f"   [cyan]$ ratchet {shown}[/cyan]", highlight=False, soft_wrap=True)

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """The same without waiting."""
        command = [str(a) for a in arguments]
        self._show(command)
        return subprocess.Popen(ratchet_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _console() -> Console:
    """As wide as the terminal; without one, wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=118)


def ratchet_command(arguments: list[str]) -> list[str]:
    """How this interpreter runs `ratchet`."""
    return [sys.executable, "-m", "tools.cli", *arguments]


def _short(arguments: list[str], out: Path) -> list[str]:
    """Arguments as one would type them: paths below the demo's folder relative to it, long ones left out."""
    prefix = f"{out}/"
    return [a.removeprefix(prefix) if a.startswith(prefix) else a for a in arguments]


def percent(rate: float, interval: tuple[float, float] | list[float] | None = None) -> str:
    """Such as ``61.0 % [54.1, 67.5]``."""
    text = f"{100 * rate:.1f} %"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
