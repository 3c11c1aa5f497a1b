"""Bundles in processes of their own, under a client that asks all the time: refused, killed, shadowed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny
from load import Load

from policies.config import CameraShape
from policies.keys import KeyPair
from policy_server.claim import can_come_back
from policy_server.engine_process import EngineProcess
from policy_server.process_session import load_session
from protos.ratchet.v1 import policy_pb2 as pb
from tests.processes import runs
from tools.bench.swap_bundles import DAMAGES, damaged, nan_when_blinded

Code = grpc.StatusCode


def huge_file(path: Path) -> None:
    (path / "model.onnx").unlink()  # a hard link to the good one's
    with (path / "model.onnx").open("wb") as file:
        file.truncate(3 * 2**30)  # sparse


def huge_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_bytes(b" " * (9 * 2**20))


#: What is wrong with a bundle, and a word of the reason.
WORDS = {
    "truncated": "bytes, not",
    "tampered": "signed hash",
    "unsigned": "no signature",
    "wrong_shape": "48×48",
    "wrong_robot": "so101",
    "nan": "NaN",
    "symlink": "not a plain file",
    "missing_file": "missing",
    "duplicate_key": "does not fit the manifest",
    "huge_file": "bytes, not",
    "huge_manifest": "more than",
    "foreign": "unknown key",
    "hostile_graph": "does not run",
}


def bad_bundles(place: Any, good: Any) -> dict[str, Path]:
    root = place.root / "bundles"
    kinds = {**DAMAGES, "huge_file": huge_file, "huge_manifest": huge_manifest}
    made = {name: damaged(good.path, root / name, damage) for name, damage in kinds.items()}
    cameras = tuple(CameraShape(name=c.name, height=48, width=48) for c in tiny.CAMERAS)
    graph = nan_when_blinded(good.read("model.onnx"))
    made["wrong_shape"] = place.bundle("wrong_shape", cameras=cameras).path
    made["wrong_robot"] = place.bundle("wrong_robot", robot="so101").path
    made["nan"] = place.bundle("nan", model=graph).path
    made["foreign"] = place.bundle("foreign", key=KeyPair.generate()).path
    made["hostile_graph"] = place.bundle("hostile_graph", model=os.urandom(4096)).path
    return made


#: Those that are refused at different steps; each load of the others would only start one more process.
IN_PROCESS = ("truncated", "unsigned", "wrong_robot", "nan", "hostile_graph")


@pytest.mark.parametrize(("isolation", "kinds"), [("thread", tuple(WORDS)), ("process", IN_PROCESS)])
async def test_each_kind_of_bad_bundle_is_refused_with_its_reason_while_the_old_one_goes_on(
    place, running, isolation: str, kinds: tuple[str, ...]
) -> None:
    good = place.bundle("good")
    bad = bad_bundles(place, good)
    assert bad.keys() == WORDS.keys()
    reasons: dict[str, str] = {}
    async with running(place.config(bundle=good.path, isolation=isolation)) as run:
        client = Load(run.stub, pause_s=0.003)
        for name in kinds:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await run.stub.Load(pb.LoadRequest(path=str(bad[name]), activate=True), timeout=30)
            assert caught.value.code() is Code.FAILED_PRECONDITION, name
            reasons[name] = caught.value.details()
            await client.more(1)
        await client.stop()
        now = await run.stub.Status(pb.StatusRequest(), timeout=5)
    assert {name for name in kinds if WORDS[name] in reasons[name]} == set(kinds), reasons
    assert not [reason for reason in reasons.values() if "\n" in reason]
    assert set(client.versions) == {good.version}
    assert [(slot.version, slot.active) for slot in now.slots] == [(good.version, True)]
    assert (now.failed, now.epoch) == (0, 1)


async def test_swaps_shadow_and_a_killed_engine_under_a_client(place, running):
    a, b = place.bundle("a"), place.bundle("b", 0.25)
    async with running(place.config(bundle=a.path, isolation="process")) as run:
        client = Load(run.stub, pause_s=0.003)
        await client.more(5)
        # A shadow sees what is asked, and its actions go nowhere.
        begun = await run.stub.Shadow(pb.ShadowRequest(bundle=str(b.path)), timeout=30)
        assert begun.running
        async with asyncio.timeout(20):
            while (found := await run.stub.Shadow(pb.ShadowRequest(), timeout=5)).compared < 5:
                await client.more(1)
        assert (found.version, found.serving, found.failed) == (b.version, a.version, 0)
        assert found.mean_rad == pytest.approx(0.25, abs=1e-4)
        assert found.max_sd == pytest.approx(0.25, abs=1e-4)
        assert list(found.action_names) == list(b.manifest.action_names)
        assert found.joint_mean_rad == pytest.approx([0.25] * 6, abs=1e-4)
        assert 0 < found.exec_ms_p50 <= found.exec_ms_p99 <= found.seconds * 1e3
        assert set(client.versions) == {a.version}
        # A swap ends it: what serves is no shadow.
        swapped = await run.stub.Swap(pb.SwapRequest(version=b.version), timeout=20)
        assert swapped.previous == a.version
        ended = await run.stub.Shadow(pb.ShadowRequest(), timeout=5)
        assert (ended.running, ended.reason) == (False, "it serves now")
        assert ended.compared >= found.compared
        assert (await run.stub.Status(pb.StatusRequest(), timeout=5)).shadow == ended
        await client.more(5)
        await client.stop()
        now = await run.stub.Status(pb.StatusRequest(), timeout=5)
        pids = {slot.version: slot.pid for slot in now.slots}
        assert len({*pids.values(), os.getpid()}) == 3
        offset = {a.version: 0.0, b.version: 0.25}
        light = client.answers[0][2]
        assert all(
            first == pytest.approx(light + offset[version], abs=1e-4) for version, _, first in client.answers
        )
        # The engine dies while its bundle is on probation: back to the one before, by itself.
        os.kill(pids[b.version], signal.SIGKILL)
        answers = [await _ask(run.stub) for _ in range(5)]
        assert answers[-1] == a.version
        # That one dies too, with nothing to go back to: it is loaded again.
        os.kill(pids[a.version], signal.SIGKILL)
        for _ in range(400):
            if await _ask(run.stub) == a.version:
                break
            await asyncio.sleep(0.05)
        now = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert [event.kind for event in now.events][-2:] == ["rolled back", "revived"]
    left = [pid for pid in (*pids.values(), *(slot.pid for slot in now.slots)) if runs(pid)]
    assert not left


@pytest.mark.skipif(not can_come_back(), reason="no leave to come back from SCHED_IDLE: no CAP_SYS_NICE")
@pytest.mark.parametrize("priority", [0, 3])
def test_every_thread_of_a_shadows_engine_gives_way_and_comes_back(place, priority: int) -> None:
    config = place.config(threads=3, isolation="process", priority=priority)
    bundle = place.bundle("a")
    inherited = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # whatever the tests themselves run at
    try:
        engine = EngineProcess()
    finally:
        os.sched_setscheduler(0, *inherited)
    try:
        session, reply = load_session(engine, engine.open(bundle.path, config.trust), "onnx", config)
        seen = (
            np.zeros((1, 6), np.float32),
            {c.name: np.zeros((1, 32, 32, 3), np.uint8) for c in tiny.CAMERAS},
        )
        usual = os.SCHED_FIFO if reply["priority"] else os.SCHED_OTHER
        assert _policies(engine.pid) == {usual}
        for _ in range(2):
            session.infer_idle(*seen)
            assert _policies(engine.pid, but=engine.pid) == {os.SCHED_IDLE}
            assert os.sched_getscheduler(engine.pid) == usual, "it only waits, and hears of the next request"
            session.infer(*seen)
            assert usual in _policies(engine.pid, but=engine.pid)
            assert _idle_threads(engine.pid) <= 1, "the one that runs shadows"
    finally:
        engine.close()


def _policies(pid: int, but: int = 0) -> set[int]:
    """The scheduling policies of a process's threads."""
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    assert len(threads) >= 3, "the engine has made its threads"
    return {os.sched_getscheduler(thread) for thread in threads if thread != but}


def _idle_threads(pid: int) -> int:
    return sum(os.sched_getscheduler(int(name)) == os.SCHED_IDLE for name in os.listdir(f"/proc/{pid}/task"))


async def _ask(stub: Any) -> str | None:
    """The version that answers; None when the request fails."""
    try:
        return (await stub.Infer(tiny.make_request(1), timeout=5)).version
    except grpc.aio.AioRpcError:
        return None
