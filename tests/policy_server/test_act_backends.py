"""A bundle exported from a real (tiny) network, served by each backend that needs no compiler."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from policies.act import ACT
from policies.config import ACTConfig, CameraShape, FeatureStats, NormStats
from policies.export import RawBatch, Tolerances, export_bundle
from policies.manifest import BundleMeta
from policies.normalise import Normaliser
from protos.codec import decode_tensor, encode_image, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

torch = pytest.importorskip("torch")

CAMERA = CameraShape(name="front", height=32, width=32)


def export(place, name: str, seed: int):
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = ACTConfig(
        cameras=(CAMERA,), chunk=8, execute=4, dim=16, heads=2, ffn=32, encoder_layers=1,
        decoder_layers=1, vae_layers=1, latent=4, backbone_width=8, backbone_blocks=1, dropout=0.0,
    )  # fmt: skip
    unit = FeatureStats(mean=(0.0,) * 6, std=(1.0,) * 6)
    rgb = FeatureStats(mean=(0.5,) * 3, std=(0.25,) * 3)
    normaliser = Normaliser(NormStats(state=unit, action=unit, images={"front": rgb}), config)
    rng = np.random.default_rng(0)
    batch = RawBatch(
        rng.normal(size=(8, 6)).astype(np.float32),
        {"front": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)},
    )
    meta = BundleMeta(name=name)
    path = place.root / "bundles" / name
    # An untrained network this small quantises badly; how well is the export's own test.
    return export_bundle(
        ACT(config), normaliser, path, place.key, meta, [batch], Tolerances(int8_mean=1.0)
    ), batch


@pytest.mark.timeout(120)
async def test_every_form_of_one_network_answers_alike_and_swaps_into_another(place, running):
    bundle, batch = export(place, "first", 0)
    other, _ = export(place, "second", 1)
    image = batch.images["front"][0]
    request = pb.InferRequest(state=encode_tensor(batch.state[0]), images=[encode_image("front", image)])
    answers = {}
    async with running(place.config(max_resident=4)) as run:
        for backend in ("onnx", "onnx-int8", "torch"):
            load = pb.LoadRequest(path=str(bundle.path), backend=backend, activate=True)
            assert (await run.stub.Load(load, timeout=60)).active
            reply = await run.stub.Infer(request, timeout=10)
            assert reply.version == bundle.version
            answers[backend] = decode_tensor(reply.actions, "actions", np.float32, (8, 6))
        swap = pb.LoadRequest(path=str(other.path), backend="onnx", activate=True)
        await run.stub.Load(swap, timeout=60)
        swapped = await run.stub.Infer(request, timeout=10)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
    np.testing.assert_allclose(answers["onnx"], answers["torch"], atol=1e-4)
    assert np.abs(answers["onnx-int8"] - answers["torch"]).mean() < 1.0
    assert swapped.version == other.version
    assert not np.allclose(decode_tensor(swapped.actions, "actions", np.float32, (8, 6)), answers["onnx"])
    assert [slot.backend for slot in status.slots if slot.active] == ["onnx"]


async def test_a_graph_taken_from_another_bundle_is_caught_by_its_hash(place, running):
    first, _ = export(place, "first", 0)
    second, _ = export(place, "second", 1)
    (first.path / "model.onnx").write_bytes((second.path / "model.onnx").read_bytes())
    async with running(place.config()) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.stub.Load(pb.LoadRequest(path=str(first.path), activate=True), timeout=60)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "model.onnx" in caught.value.details()
