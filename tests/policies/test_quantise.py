"""The int8 form: integers where it pays, float32 where measurement says it hurts, pixels as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from policies.act import ACT
from policies.bundle import Bundle
from policies.config import ACTConfig, CameraShape
from policies.deployed import DeployedACT
from policies.engine import OPENVINO, skipped
from policies.export import RawBatch, ServedACT, export_onnx
from policies.normalise import Normaliser
from policies.pixels import fold_pixels
from policies.qdq import Graph, Range
from policies.quantise import Feed, Quantiser, quantise
from tests.policies.conftest import TINY, make_batch, make_model

VARIANTS: dict[str, dict[str, Any]] = {
    "one backbone": {"backbone_per_camera": False},
    "pre-norm, two decoder layers": {"pre_norm": True, "decoder_layers": 2, "activation": "gelu"},
    "resized": {"resize": (32, 64)},
    "resized to one size and cropped": {"resize": (40, 64), "crop": (32, 40), "backbone_per_camera": False},
    "cropped": {"crop": (48, 32), "backbone_per_camera": False},
    "cameras of two sizes": {
        "backbone_per_camera": False,
        "cameras": (
            CameraShape(name="front", height=64, width=96),
            CameraShape(name="wrist", height=32, width=64),
        ),
    },
}


def variant(**update: object) -> ACTConfig:
    return ACTConfig.model_validate({**TINY.model_dump(), **update})


def both(
    model: ACT, normaliser: Normaliser, batch: RawBatch
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    tensors = [
        torch.from_numpy(batch.state),
        *(torch.from_numpy(batch.images[c.name]) for c in model.config.cameras),
    ]
    with torch.no_grad():
        plain = ServedACT(model, normaliser).eval()(*tensors)
        return list(plain), list(DeployedACT(model, normaliser).eval()(*tensors))


def quantiser(tmp_path: Path, model: ACT, normaliser: Normaliser, batch: RawBatch) -> Quantiser:
    path = tmp_path / "model.onnx"
    export_onnx(DeployedACT(model, normaliser).eval(), batch, path)
    (actions, _), _ = both(model, normaliser, batch)
    feed: Feed = {"state": batch.state, **{f"image.{name}": image for name, image in batch.images.items()}}
    return Quantiser(path, [feed], actions.numpy(), normaliser.action_std.numpy())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_worked_out_beforehand_changes_nothing(name: str) -> None:
    config = variant(**VARIANTS[name])
    model, normaliser = make_model(config)
    for size in (1, 3):
        plain, deployed = both(model, normaliser, make_batch(config, size))
        for one, other in zip(plain, deployed, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-5)


def test_int8_is_really_int8_where_it_matters_and_float_where_it_hurts(
    exported: Bundle, tmp_path: Path
) -> None:
    """ONNX Runtime makes integer kernels of all that was not kept, and nothing else was quantised."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(exported.onnx_path("int8"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    scheme = exported.manifest.parity.int8_scheme
    assert "uint8×int8" in scheme
    integer = kinds.count("QLinearConv") + kinds.count("QGemm")
    floating = [kind for kind in kinds if kind in ("Conv", "FusedConv", "Gemm", "FusedGemm")]
    assert integer > 4 * len(floating)
    assert "Softmax" in kinds
    assert exported.manifest.parity.int8_error <= exported.manifest.parity.int8_tolerance


def test_the_layer_that_hurts_is_found_and_kept(tmp_path: Path) -> None:
    """One hidden unit a thousand times the others leaves them no integers: that layer alone is to blame."""
    cameras = (CameraShape(name="front", height=32, width=32),)
    model, normaliser = make_model(variant(encoder_layers=2, cameras=cameras, backbone_blocks=1))
    with torch.no_grad():
        model.get_parameter("encoder.layers.1.linear1.bias")[0] = 1000.0
        model.get_parameter("encoder.layers.1.linear2.weight")[:, 0] = 0.0
    made = quantiser(tmp_path, model, normaliser, make_batch(model.config, 4))
    loose = quantise(made, 1.0, tmp_path / "loose.onnx")
    worst = max(loose.blocks, key=lambda block: block.error)
    assert worst.name == "layers.1.feed.linear2"
    tight = quantise(made, 0.5 * worst.error, tmp_path / "tight.onnx")
    assert "layers.1.feed.linear2" in {block.name for block in tight.kept}
    assert tight.error <= 0.5 * worst.error
    assert sum(block.work for block in tight.kept) < 0.5


@pytest.mark.parametrize("resize", [None, (32, 64)])
def test_pixels_go_into_the_first_convolution(tmp_path: Path, resize: tuple[int, int] | None) -> None:
    """No float picture is made of them, and the border is the mean colour, to a pixel value."""
    cameras = tuple(CameraShape(name=name, height=64, width=80) for name in ("front", "wrist"))
    config = variant(cameras=cameras, resize=resize, crop=(32, 48), backbone_per_camera=False)
    model, normaliser = make_model(config)
    batch = make_batch(config, 2)
    path = tmp_path / "model.onnx"
    export_onnx(DeployedACT(model, normaliser).eval(), batch, path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "prepared.onnx")
    before = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = Graph(onnx.load(tmp_path / "prepared.onnx"))
    assert len(fold_pixels(graph)) == 1
    after = ort.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in graph.graph.node]
    assert ("Cast" in kinds) == (resize is not None)
    feed: Feed = {"state": batch.state, **{f"image.{name}": image for name, image in batch.images.items()}}
    expected, folded = (session.run(["actions"], feed)[0] for session in (before, after))
    assert np.abs(folded - expected).max() < (2e-2 if resize else 2e-3) * float(normaliser.action_std.max())


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 0.0), (-1.0, 4.0), (0.5, 2.0), (0.0, 0.0)])
def test_zero_is_an_integer_in_every_range(low: float, high: float) -> None:
    scale, zero = Range(low, high).parameters()
    for value in (low, 0.0, high):
        code = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((code - zero) * scale - value) <= scale
    assert scale > 0


def test_a_channel_without_weights_keeps_its_bias(tmp_path: Path) -> None:
    """The latent's token is nothing but a bias: its integer must not run over."""
    model, normaliser = make_model(TINY)
    with torch.no_grad():
        model.encoder_latent_input_proj.bias.fill_(50.0)
    made = quantiser(tmp_path, model, normaliser, make_batch(TINY, 2))
    low = [block for block in made.blocks if block.name == "low"]
    assert made.error(made.make(low)) < 0.02


def test_attention_multiplies_integers_where_they_do_no_harm(tmp_path: Path) -> None:
    """Queries, keys and values on symmetric scales, which OpenVINO multiplies; the softmax on uint8."""
    model, normaliser = make_model(variant(encoder_layers=2))
    made = quantiser(tmp_path, model, normaliser, make_batch(TINY, 2))
    mixing = [block for block in made.blocks if block.name.endswith((".scores", ".values"))]
    names = {"layers.0.mix.scores", "layers.0.mix.values", "layers.1.mix.scores", "layers.1.mix.values"}
    assert {block.name for block in mixing} == {*names, "first.mix.values"}  # the first queries are constants
    assert sum(block.work for block in made.blocks) == pytest.approx(1.0)
    graph = Graph(onnx.load_from_string(made.make(mixing)))
    inside = {name for block in mixing for name in block.nodes}
    kinds = []
    for node in graph.graph.node:
        if node.name in inside:
            steps = [graph.dequantised(name) for name in node.input]
            kinds.append(tuple(graph.value(step.input[2]).dtype.name for step in steps if step is not None))
    assert sorted(kinds) == [("int8", "int8")] * 2 + [("uint8", "int8")] * 3
    assert made.error(made.make(mixing)) < 0.02


@pytest.mark.skipif(OPENVINO in skipped(), reason=f"no OpenVINO: {skipped()}")
@pytest.mark.parametrize("name", VARIANTS)
def test_openvino_computes_every_network_s_integers_as_onnx_runtime_does(tmp_path: Path, name: str) -> None:
    from policies.openvino_session import Int8Network

    config = variant(**VARIANTS[name])
    model, normaliser = make_model(config)
    made = quantiser(tmp_path, model, normaliser, make_batch(config, 4))
    data = made.make(made.blocks)
    state, images = make_batch(config, 2, seed=5)
    feed = {"state": state, **{f"image.{camera}": image for camera, image in images.items()}}
    known = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(["actions"], feed)[0]
    off = np.abs(Int8Network(data, 1).run(feed).actions - known) / normaliser.action_std.numpy()
    assert off.mean() < 0.02


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 0.0), (-1.0, 4.0), (0.0, 0.0)])
def test_symmetric_steps_hold_the_range_with_zero_in_the_middle(low: float, high: float) -> None:
    scale, zero = Range(low, high).symmetric()
    assert zero == 0
    assert scale > 0
    for value in (low, high):
        code = np.clip(np.rint(value / scale), -128, 127)
        assert abs(code * scale - value) <= scale / 2 + 1e-9
