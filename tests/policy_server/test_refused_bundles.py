"""Bundles that are refused, each with its reason, while the old one goes on serving."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny
from load import Load

from policies.config import CameraShape
from policies.keys import KeyPair
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


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
        await load.more(3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=os.fspath(path), activate=True), timeout=30)
        assert caught.value.code() is code
        details = caught.value.details()
        assert details
        assert "\n" not in details
        await load.more(3)
        await load.stop()
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert [(slot.version, slot.active) for slot in status.slots] == [(good.version, True)]
        assert {(version, epoch) for version, epoch, _ in load.answers} == {(good.version, 1)}
        return details


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
