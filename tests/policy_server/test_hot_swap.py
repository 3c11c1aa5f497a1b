"""Swaps under load, the way back by hand, and what stays in memory."""

from __future__ import annotations

import grpc
import pytest
from load import Load

from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


async def test_swaps_under_a_stream_of_requests_fail_none_and_never_mix(place, running):
    bundles = [place.bundle(f"b{i}", offset=float(i)) for i in range(4)]
    offset = {bundle.version: float(i) for i, bundle in enumerate(bundles)}
    async with running(place.config(bundle=bundles[0].path, max_resident=3)) as run:
        load = Load(run.stub, clients=3)
        await load.more(20)
        for bundle in [*bundles[1:], *bundles[:2]]:
            reply = await run.stub.Load(pb.LoadRequest(path=str(bundle.path), activate=True), timeout=30)
            assert reply.active
            await load.more(20)
        back = await run.stub.Rollback(pb.RollbackRequest(), timeout=5)
        assert back.version == bundles[0].version
        await load.more(20)
        await load.stop()
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
        for i in range(100):
            version = (b, a)[i % 2].version
            reply = await run.stub.Swap(pb.SwapRequest(version=version), timeout=5)
            assert reply.epoch == i + 2
            await load.more(1)
        await load.stop()
    epochs = [epoch for _, epoch, _ in load.answers]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 101


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
