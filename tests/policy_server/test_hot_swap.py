"""Swaps under load, and bundles that are refused while the old one goes on serving."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny

from policies.config import CameraShape
from policies.keys import KeyPair
from protos.codec import decode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


@dataclass
class Load:
    """Clients that ask all the time; every answer is kept as (version, epoch, first action)."""

    stub: Any
    answers: list[tuple[str, int, float]] = field(default_factory=list)
    stopping: bool = False

    async def ask(self) -> None:
        tick = 0
        while not self.stopping:
            tick += 1
            reply = await self.stub.Infer(tiny.make_request(tick), timeout=20)
            first = float(decode_tensor(reply.actions, "actions", np.float32, (None, 6))[0, 0])
            self.answers.append((reply.version, reply.epoch, first))

    async def more(self, n: int) -> None:
        """Wait until ``n`` more answers came."""
        goal = len(self.answers) + n
        for _ in range(10_000):
            if len(self.answers) >= goal:
                return
            await asyncio.sleep(0.002)
        pytest.fail(f"only {len(self.answers)} of {goal} answers came")


async def test_swaps_under_a_stream_of_requests_fail_none_and_never_mix(place, running):
    bundles = [place.bundle(f"b{i}", offset=float(i)) for i in range(4)]
    offset = {bundle.version: float(i) for i, bundle in enumerate(bundles)}
    async with running(place.config(bundle=bundles[0].path, max_resident=3)) as run:
        load = Load(run.stub)
        clients = [asyncio.create_task(load.ask()) for _ in range(3)]
        await load.more(20)
        for bundle in [*bundles[1:], *bundles[:2]]:
            reply = await run.stub.Load(pb.LoadRequest(path=str(bundle.path), activate=True), timeout=30)
            assert reply.active
            await load.more(20)
        back = await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert back.version == bundles[0].version
        await load.more(20)
        load.stopping = True
        await asyncio.gather(*clients)  # raises if any request failed
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
    assert all(first == pytest.approx(offset[version]) for version, _, first in load.answers)
    by_epoch = {epoch: {v for v, e, _ in load.answers if e == epoch} for _, epoch, _ in load.answers}
    assert sorted(by_epoch) == [1, 2, 3, 4, 5, 6, 7]
    assert all(len(versions) == 1 for versions in by_epoch.values())
    assert (status.failed, status.refused, status.dropped) == (0, 0, 0)
    assert status.served == len(load.answers)


async def test_the_epoch_one_client_sees_never_falls(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        await run.stub.Load(pb.LoadRequest(path=str(b.path)), timeout=30)
        load = Load(run.stub)
        client = asyncio.create_task(load.ask())
        for i in range(100):
            version = (b, a)[i % 2].version
            reply = await run.stub.Swap(pb.SwapRequest(version=version), timeout=5)
            assert reply.epoch == i + 2
            await load.more(1)
        load.stopping = True
        await client
    epochs = [epoch for _, epoch, _ in load.answers]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 101


def tamper_weights(path: Path) -> None:
    data = bytearray((path / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.onnx").write_bytes(data)


def tamper_manifest(path: Path) -> None:
    raw = json.loads((path / "manifest.json").read_text())
    raw["execute"] = 1
    (path / "manifest.json").write_text(json.dumps(raw))


def unsign(path: Path) -> None:
    (path / "signature").unlink()


def truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1])


def remove(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize("damage", [tamper_weights, tamper_manifest, unsign, truncate, remove])
async def test_a_damaged_bundle_is_refused_while_the_old_one_serves(place, running, damage):
    good, bad = place.bundle("good"), place.bundle("bad", 1.0)
    damage(bad.path)
    await _refused_while_serving(place, running, good, bad.path, Code.FAILED_PRECONDITION)


def foreign_key(place: Any) -> Path:
    return place.bundle("x", 1.0, key=KeyPair.generate()).path


def other_cameras(place: Any) -> Path:
    return place.bundle("x", 1.0, cameras=(CameraShape(name="front", height=32, width=32),)).path


def other_size(place: Any) -> Path:
    cameras = tuple(CameraShape(name=c.name, height=48, width=48) for c in tiny.CAMERAS)
    return place.bundle("x", 1.0, cameras=cameras).path


def other_robot(place: Any) -> Path:
    return place.bundle("x", 1.0, robot="so101").path


def other_rate(place: Any) -> Path:
    return place.bundle("x", 1.0, rate_hz=50.0).path


def not_golden(place: Any) -> Path:
    return place.bundle("x", 1.0, golden_offset=1.5).path


def uncalibrated(place: Any) -> Path:
    return place.bundle("x", 1.0, monitors=None).path


def not_a_graph(place: Any) -> Path:
    return place.bundle("x", 1.0, model=b"not a graph at all").path


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (foreign_key, "unknown key"),
        (other_cameras, "cameras"),
        (other_size, "48×48"),
        (other_robot, "so101"),
        (other_rate, "rate_hz"),
        (not_golden, "golden"),
        (uncalibrated, "thresholds"),
        (not_a_graph, "does not run on onnx"),
    ],
)
async def test_a_bundle_that_must_not_take_over_is_refused(place, running, make, word: str):
    details = await _refused_while_serving(
        place, running, place.bundle("good"), make(place), Code.FAILED_PRECONDITION
    )
    assert word in details


async def test_paths_outside_the_roots_are_refused_also_through_links(place, running):
    good = place.bundle("good")
    outside = tiny.make_bundle(place.root / "elsewhere", place.key, 1.0)
    link = place.root / "bundles" / "link"
    link.symlink_to(outside.path)
    for path in (outside.path, link, place.root / "bundles" / ".." / "elsewhere"):
        await _refused_while_serving(place, running, good, path, Code.PERMISSION_DENIED)


async def _refused_while_serving(place, running, good, path: Path, code: grpc.StatusCode) -> str:
    async with running(place.config(bundle=good.path)) as run:
        load = Load(run.stub)
        client = asyncio.create_task(load.ask())
        await load.more(3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=os.fspath(path), activate=True), timeout=30)
        assert caught.value.code() is code
        details = caught.value.details()
        assert details
        assert "\n" not in details
        await load.more(3)
        load.stopping = True
        await client
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert [(slot.version, slot.active) for slot in status.slots] == [(good.version, True)]
        assert {(version, epoch) for version, epoch, _ in load.answers} == {(good.version, 1)}
        return details


async def test_an_uncalibrated_bundle_is_let_in_by_choice_and_as_the_first(place, running):
    plain, calibrated = place.bundle("plain", monitors=None), place.bundle("calibrated", 1.0)
    request = pb.LoadRequest(path=str(plain.path), activate=True)
    async with running(place.config(bundle=calibrated.path, allow_uncalibrated=True)) as run:
        assert (await run.stub.Load(request, timeout=30)).active
    async with running(place.config(bundle=plain.path)) as run:
        await run.stub.Load(pb.LoadRequest(path=str(calibrated.path), activate=True), timeout=30)
        # Going back is always allowed: that bundle has served.
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=5)).version == plain.version


async def test_rollback_goes_back_once(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert caught.value.code() is Code.FAILED_PRECONDITION
        await run.stub.Load(pb.LoadRequest(path=str(b.path), activate=True), timeout=30)
        assert (await run.stub.Rollback(pb.RollbackRequest(), timeout=5)).previous == b.version
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert "swap to" in caught.value.details()


async def test_loading_what_serves_already_changes_nothing(place, running):
    a = place.bundle("a")
    async with running(place.config(bundle=a.path)) as run:
        reply = await run.stub.Load(pb.LoadRequest(path=str(a.path), activate=True), timeout=30)
        assert (reply.active, reply.epoch) == (True, 1)
        assert len((await run.stub.Status(pb.StatusRequest(), timeout=5)).slots) == 1


async def test_swapping_to_what_is_not_loaded_is_refused(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Swap(pb.SwapRequest(version="0" * 12), timeout=5)
        assert caught.value.code() is Code.NOT_FOUND


async def test_memory_is_bounded_and_neither_active_nor_previous_is_evicted(place, running):
    bundles = [place.bundle(f"b{i}", float(i)) for i in range(6)]
    async with running(place.config(bundle=bundles[0].path, max_resident=3)) as run:
        await run.stub.Load(pb.LoadRequest(path=str(bundles[1].path), activate=True), timeout=30)
        for bundle in bundles[2:]:
            await run.stub.Load(pb.LoadRequest(path=str(bundle.path)), timeout=30)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        resident = {slot.version for slot in status.slots}
        assert resident == {bundles[i].version for i in (0, 1, 5)}


async def test_a_removed_key_is_not_trusted_any_more(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        for public in place.trust.glob("*.pub"):
            public.unlink()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=str(b.path)), timeout=30)
        assert "trusted keys" in caught.value.details()


async def test_a_bundle_too_slow_for_its_budget_is_refused(place, running):
    a = place.bundle("a")
    async with running(place.config(max_warm_ms=1e-6)) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=str(a.path)), timeout=30)
        assert "allowed" in caught.value.details()


async def test_an_unknown_backend_is_refused(place, running):
    async with running(place.config()) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=str(place.bundle("a").path), backend="tpu"), timeout=30)
        assert "onnx-int8" in caught.value.details()
