"""Running `ratchet` in this process, and a toy data set it can be run on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig
from policies.manifest import KOCH_FEATURES
from tools.cli import main

ROOT = Path(__file__).parents[3]
FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"
SIZE = 32
TICK_NS = 33_333_333
# A network and a run so small that they take a second.
TINY = tuple(
    f"--set={setting}"
    for setting in (
        "chunk=8", "execute=4", "dim=32", "ffn=48", "heads=4", "backbone_width=8", "backbone_blocks=1",
        "encoder_layers=1", "latent=4", "batch=8", "warmup=5", "lr=1e-3", "log_every=2",
        "batchnorm_batches=2", "threads=1",
    )
)  # fmt: skip


def short_of_disk(most_bytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`ratchet` where no file may grow beyond ``most_bytes``, as on a full disk: the same calls fail.

    The limit is set in the new process: one that gRPC's threads run in cannot be forked safely.
    """
    limit = (
        "import resource, sys; from tools.cli import main; "
        "most = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)); main()"
    )
    command = [sys.executable, "-c", limit, str(most_bytes), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)

    def one_line(self) -> str:
        """The one line a user's mistake leaves; fails when it is not exactly that."""
        assert self.code == 2, self
        lines = self.err.strip().splitlines()
        assert lines[-1].startswith(("ratchet: ", "Error: ")), self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[-1]


@dataclass(frozen=True)
class Toys:
    """Where the shared toys are (fixture ``toys``); never written to."""

    store: Path
    keys: Path
    bundle: Path


def ratchet(*arguments: object) -> Result:
    """Run the command as the shell would."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["ratchet", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    return Result(code, out.getvalue(), err.getvalue())


def record(
    store: EpisodeStore, name: str, ticks: int = 24, *, skip: tuple[int, ...] = (), **spec: Any
) -> str:
    """An episode as the recorder writes it: the arm follows a sine, the pictures tell its phase."""
    streams = tuple(
        StreamSpec(name=stream, shape=(6,), unit="rad", names=KOCH_FEATURES)
        for stream in ("observation.state", "action")
    )
    described = EpisodeSpec(
        task="toy",
        streams=(*streams, StreamSpec(name="tick.source", dtype="uint8")),
        cameras=(CameraSpec(name="front", height=SIZE, width=SIZE),),
        **spec,
    )
    writer = store.begin(described, episode_id=name, started_ns=0, config=WriterConfig(wait_when_full=True))
    draw = np.random.default_rng(len(name) + sum(map(ord, name)))
    phase = draw.uniform(0, 6)
    for tick in range(ticks):
        if tick in skip:
            continue
        here, ahead = (np.sin(phase + (tick + n) / 5 + np.arange(6)).astype(np.float32) for n in (0, 1))
        t_ns = tick * TICK_NS
        writer.append("observation.state", t_ns, tick, here)
        writer.append("action", t_ns, tick, ahead)
        writer.append("tick.source", t_ns, tick, np.uint8(1))
        light = np.full((SIZE, SIZE, 3), int(128 + 100 * here[0]), np.uint8)
        writer.append_frame("front", t_ns, tick, light)
    writer.end("success", "done").wait(30)
    return name


def toy_store(path: Path, episodes: int = 4, **spec: Any) -> Path:
    """A store of ``toy-0``, ``toy-1`` …"""
    with EpisodeStore.open(path) as store:
        for number in range(episodes):
            record(store, f"toy-{number}", **spec)
    return path


def start(*arguments: object) -> subprocess.Popen[str]:
    """Run the command as a process of its own, one thread each."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], path: Path, within_s: float = 100.0) -> None:
    """Until ``path`` exists; fails when the process ends before."""
    end = time.monotonic() + within_s
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"no {path} within {within_s} s"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C; its exit code and stderr."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@contextlib.contextmanager
def running(ready: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command as a process, from the time ``ready`` exists; killed in the end if it still runs."""
    process = start(*arguments)
    try:
        wait_for(process, ready)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
