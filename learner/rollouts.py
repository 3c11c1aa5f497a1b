"""Rollouts by ``ratchet evaluate``, in a process of its own.

What is judged is the real control path, guard included, and a crash there stays there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learner.errors import RolloutError

log = logging.getLogger(__name__)

_KEPT_OUTPUT = 4000


class EpisodeResult(BaseModel):
    """One rollout as ``ratchet evaluate`` reports it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    seed: int
    success: bool
    ticks: int = Field(ge=0)
    slice: str
    flags: tuple[str, ...] = ()
    episode_id: str | None = None
    intervened: bool = False


class EvaluateResult(BaseModel):
    """The JSON that ``ratchet evaluate --json`` writes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    bundle: str
    episodes: tuple[EpisodeResult, ...]
    against: tuple[EpisodeResult, ...] | None = None
    success_rate: float = Field(ge=0.0, le=1.0)
    interval: tuple[float, float]
    latency_ms_p99: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to run: ``count`` seeds from ``first`` on in ``region`` (full, covered or gap).

    ``against`` runs a second bundle on the same seeds; ``record`` with ``take_over`` keeps the
    episodes, with the operator's corrections; ``signals`` keeps what thresholds are made from.
    """

    bundle: Path
    first: int
    count: int
    region: str = "full"
    against: Path | None = None
    take_over: bool = False
    record: Path | None = None
    signals: Path | None = None

    def arguments(self) -> list[str]:
        """Arguments of ``ratchet evaluate``."""
        seeds = f"{self.first}:{self.first + self.count}"
        out = ["evaluate", str(self.bundle), "--seeds", seeds, "--region", self.region]
        if self.against is not None:
            out += ["--against", str(self.against)]
        if self.take_over:
            out.append("--take-over")
        if self.record is not None:
            out += ["--record", str(self.record)]
        if self.signals is not None:
            out += ["--signals", str(self.signals)]
        return out


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Starts evaluations. ``command`` is how ``ratchet`` is called, ``extra`` is added to each call."""

    command: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    timeout_s: float = 1800.0

    def run(self, request: Request, out: Path) -> EvaluateResult:
        """Run and wait; the result is kept at ``out``, and read from there when it is there already.

        Raises RolloutError when the process fails, overruns its time or writes something else.
        """
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            beside = out.with_name(out.name + ".partial")
            self._execute([*request.arguments(), *self.extra, "--json", str(beside)])
            _parse(beside, request)
            beside.replace(out)
        return _parse(out, request)

    def _execute(self, arguments: list[str]) -> None:
        command = self.command or (str(Path(sys.executable).with_name("ratchet")),)
        log.info("rollouts.start command=%s", " ".join([Path(command[0]).name, *arguments]))
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise RolloutError(
                f"cannot start {command[0]} ({error})", "install ratchet beside python"
            ) from error
        try:
            _, stderr = process.communicate(timeout=self.timeout_s)
        except BaseException as error:
            # The whole group: an evaluation may have workers of its own.
            os.killpg(process.pid, signal.SIGKILL)
            _drain(process.stderr)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RolloutError(
                    f"rollouts took longer than {self.timeout_s:.0f} s", "allow more time or run fewer"
                ) from error
            raise
        if process.returncode != 0:
            lines = stderr[-_KEPT_OUTPUT:].decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no message"
            raise RolloutError(f"ratchet evaluate ended with {process.returncode}: {last}", "run it by hand")


def _drain(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()


def _parse(path: Path, request: Request) -> EvaluateResult:
    try:
        raw: Any = json.loads(path.read_text())
        result = EvaluateResult.model_validate(raw)
    except (OSError, ValueError, ValidationError) as error:
        line = str(error).splitlines()[0]
        raise RolloutError(f"{path} is not an evaluation ({line})", "delete it and run again") from error
    wanted = list(range(request.first, request.first + request.count))
    for episodes in (result.episodes, result.against):
        if episodes is not None and sorted(e.seed for e in episodes) != wanted:
            raise RolloutError(
                f"{path} does not hold seeds {wanted[0]} to {wanted[-1]}", "delete it, run again"
            )
    if request.against is not None and result.against is None:
        raise RolloutError(f"{path} has no second policy", "delete it and run again")
    return result
