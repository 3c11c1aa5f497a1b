"""The server as a process: readiness, orderly stop, one-line refusals, parents that die, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny

from hal.types import Frame, JointState
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from runtime.nouns import Observation
from runtime.policy_client import PolicyClient
from runtime.policy_types import PolicyRefusedError, PolicyUnavailableError

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(place) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(*options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        where = ("--address", place.address, "--trust", str(place.trust))
        process = subprocess.Popen(
            [sys.executable, "-m", "policy_server", *where, *options],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def observe(tick: int) -> Observation:
    zeros = np.zeros(6)
    joints = JointState(
        tick, tick, zeros + 0.25, zeros, zeros, zeros, zeros,
        np.zeros(6, np.uint8), np.zeros(6, bool), np.zeros(6, np.int64),
    )  # fmt: skip
    image = np.zeros((tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    # One camera more than the policy looks through.
    frames = {name: Frame(name, tick, tick, image) for name in ("front", "wrist", "side")}
    return Observation(tick, tick, joints, zeros, frames)


async def answer(client: PolicyClient, tick: int, within_s: float = 30.0) -> Any:
    """Ask as the loop does, tick after tick, until a chunk comes."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        client.begin(observe(tick))
        await asyncio.sleep(0.01)
        chunk = client.take()
        if chunk is not None:
            return chunk
    pytest.fail(f"no chunk within {within_s} s; last: {client.last_error}")


async def test_the_client_survives_a_kill_and_a_restart_and_its_epoch_never_falls(place, start):
    first, second = place.bundle("a"), place.bundle("b", 1.0)
    client = PolicyClient(place.address, timeout_s=5.0)
    process = start("--bundle", str(first.path))
    chunk = await answer(client, 1)
    assert (chunk.version, chunk.start_tick, chunk.actions.shape) == (first.version, 1, (tiny.CHUNK, 6))
    np.testing.assert_allclose(chunk.actions[0], 0.25)
    loaded = await client.load(str(second.path), activate=True)
    assert (loaded.active, loaded.version) == (True, second.version)
    before = await answer(client, 2)
    assert before.epoch == 2
    process.kill()
    process.wait()
    for tick in range(3, 8):
        client.begin(observe(tick))
        await asyncio.sleep(0.05)
        assert client.take() is None
    assert client.failures > 0
    assert isinstance(client.last_error, PolicyUnavailableError)
    start("--bundle", str(first.path))
    after = await answer(client, 9)
    assert after.version == first.version
    assert after.epoch > before.epoch
    assert client.last_error is None
    with pytest.raises(PolicyRefusedError, match="not loaded"):
        await client.swap(second.version)
    await client.close()


def _scheduled(pid: int) -> list[tuple[int, int]]:
    """Scheduler and priority of each thread, the first one's first."""
    threads = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return [(os.sched_getscheduler(t), os.sched_getparam(t).sched_priority) for t in threads]


async def test_a_real_time_priority_is_for_what_serves_and_neither_for_loading_nor_for_a_shadow(place, start):
    probe = subprocess.run(["chrt", "--fifo", "3", "true"], check=False, capture_output=True)  # noqa: ASYNC221
    if probe.returncode:
        pytest.skip("no real-time priority is granted here")
    first, second = place.bundle("a"), place.bundle("b", 1.0)
    process = start("--bundle", str(first.path), "--priority", "3", "--threads", "2")
    client, mine, none = PolicyClient(place.address, timeout_s=5.0), (os.SCHED_FIFO, 3), (os.SCHED_OTHER, 0)
    await answer(client, 1)
    await client.load(str(second.path))
    seen = _scheduled(process.pid)
    assert seen[0] == mine
    assert seen.count(none) == 1  # the loading thread
    pids = {slot.version: slot.pid for slot in (await _slots(place.address))}
    assert set(_scheduled(pids[first.version])) == {mine}
    async with _stub(place.address) as stub:
        await stub.Shadow(pb.ShadowRequest(bundle=str(second.path)), timeout=30)
        for tick in range(2, 200):
            await answer(client, tick)
            if (await stub.Shadow(pb.ShadowRequest(), timeout=5)).compared:
                break
        shadow = _scheduled(pids[second.version])
    assert shadow[0] == mine  # it only listens
    assert mine not in shadow[1:]
    assert (os.SCHED_IDLE, 0) in shadow
    await client.close()


@contextlib.asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


async def _slots(address: str) -> Any:
    async with _stub(address) as stub:
        return (await stub.Status(pb.StatusRequest(), timeout=5)).slots


def test_it_tells_systemd_when_ready_alive_and_stopping_and_exits_0(place, start):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(place.root / "notify"))
    listener.settimeout(30)
    env = {"NOTIFY_SOCKET": str(place.root / "notify"), "WATCHDOG_USEC": "200000"}
    process = start("--bundle", str(place.bundle("a").path), env=env)
    told: list[str] = []
    while not any("READY=1" in message for message in told) or told.count("WATCHDOG=1") < 3:
        told.append(listener.recv(4096).decode())
    assert (place.root / "s").stat().st_mode & 0o007 == 0, "others must not reach the socket"
    process.send_signal(signal.SIGTERM)
    while told[-1] != "STOPPING=1":
        told.append(listener.recv(4096).decode())
    listener.close()
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--bundle", "{root}/bundles/none"), "no bundle directory"),
        (("--bundle", "{root}/bundles/a", "--address", "0.0.0.0:50051"), "set either tls files"),
        (("--bundle", "{root}/bundles/a", "--address", "0.0.0.0:5", "--plaintext"), "let the network"),
        (("--bundle", "{root}/bundles/a", "--address", "unix:/nowhere/at/all"), "cannot listen"),
        (("--bundle", "{root}/bundles/a", "--trust", "{root}/none"), "no trusted keys"),
        ((), "nothing could ever be loaded"),
        (("--config", "{root}/none.toml"), "cannot read"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(place, start, options: tuple[str, ...], word: str):
    place.bundle("a")
    process = start("--log", "error", *(option.format(root=place.root) for option in options))
    _, err = process.communicate(timeout=30)
    lines = [line for line in err.splitlines() if line.startswith("policy server: ")]
    assert process.returncode == 2
    assert len(lines) == 1
    assert word in lines[0]
    assert "Traceback" not in err


def test_it_ends_with_the_process_that_started_it(place):
    bundle = place.bundle("a")
    script = textwrap.dedent(f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-m", "policy_server", "--address", {place.address!r},
            "--trust", {str(place.trust)!r}, "--bundle", {str(bundle.path)!r}, "--die-with-parent"])
        print(child.pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 30
    while not (place.root / "s").exists() and time.monotonic() < end:
        time.sleep(0.05)
    alive = os.pidfd_open(child)
    parent.kill()
    parent.communicate()
    try:
        assert select.select([alive], [], [], 20)[0], "the server outlived its parent"
    finally:
        os.close(alive)
