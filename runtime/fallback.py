"""The robot's own small policy server: what answers while the one it was told to ask is gone.

A process like the other one (``python -m policy_server``): the same verification, golden vectors and
warm-up, behind everything that has a deadline. Its bundle is on the robot.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_STOP_S = 5.0
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)


class FallbackError(RuntimeFault):
    """The local policy server cannot be started."""


class FallbackConfig(BaseModel):
    """A signed bundle on the robot, whose keys it trusts, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    trust: Path
    backend: Literal["onnx", "onnx-int8"] = "onnx-int8"
    threads: int = Field(default=1, ge=1, le=64)
    nice: int = Field(default=10, ge=0, le=19)


class FallbackServer:
    """Keeps the process running; ``keep`` is called every now and then."""

    def __init__(self, config: FallbackConfig, run_dir: Path) -> None:
        self._config = config
        self._file = run_dir / "fallback.toml"
        self._log = run_dir / "fallback.log"
        self.address = f"unix:{run_dir}/fallback.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process else None

    def start(self) -> None:
        """Start the process; loading goes on behind. Raises FallbackError when it cannot even begin."""
        config = self._config
        settings = {
            "address": self.address,
            "bundle": str(config.bundle.resolve()),
            "trust": str(config.trust.resolve()),
            "backend": config.backend,
            "threads": config.threads,
            "nice": config.nice,
        }
        # JSON's strings and numbers are TOML's.
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        command = [sys.executable, "-m", "policy_server", "--config", str(self._file), "--die-with-parent"]
        try:
            self._file.write_text("".join(lines))
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=_ROOT,
                    env=_environment(),
                )
        except OSError as error:
            raise FallbackError(f"cannot start the fallback policy server: {error.strerror}") from error
        self._starts += 1
        self._not_before = time.monotonic() + _PAUSES_S[min(self._starts, len(_PAUSES_S)) - 1]

    def keep(self) -> None:
        """Start it again when it ended, after a pause that grows."""
        if self.pid is not None or time.monotonic() < self._not_before:
            return
        log.error("fallback policy server ended (%s); starting it again", self.last_words())
        try:
            self.start()
        except FallbackError as error:
            log.error("%s", error)

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self._log.read_text(errors="replace").split("\n")
        except OSError:
            return "no log"
        return next((line for line in reversed(lines) if line.strip()), "without a word")

    def stop(self) -> None:
        """End it. Safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """Ours without what belongs to the service manager: two processes must not feed one watchdog."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    }
