"""Bias correction against the layer itself: what rounded weights add, and that the bias takes it back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from policies.bias import channel_means, drift
from policies.qdq import Graph, Range, insert


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_drift_of_a_convolution_is_the_change_of_its_mean_output(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    picture = torch.rand(3, 4, 1, 1, generator=generator).expand(3, 4, 5, 5)  # even: no border effects
    off = torch.randn(8, 4 // groups, 3, 3, generator=generator)
    wanted = functional.conv2d(picture, off, groups=groups).mean((0, 2, 3))
    found = drift(off.numpy(), channel_means(picture.numpy()), last=False)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_drift_of_a_linear_layer(last: bool) -> None:
    rng = np.random.default_rng(0)
    rows, off = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    found = drift(off.T if last else off, channel_means(rows), last)
    np.testing.assert_allclose(found, (rows @ off.T).mean(0), rtol=1e-4, atol=1e-5)


def test_an_edge_filter_stays_silent_over_an_even_surface() -> None:
    """Rounded taps do not sum to zero; with the mean known, the layer gives nothing all the same."""
    taps = np.array([0.7, -0.35, -0.35], np.float32).reshape(1, 1, 1, 3)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", kernel_shape=[1, 3])],
            "edge",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 6])],
            [numpy_helper.from_array(taps, "w"), numpy_helper.from_array(np.zeros(1, np.float32), "b")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    ranges = {"x": Range(0.0, 6.0), "y": Range(-6.0, 6.0)}
    errors = []
    for mean in (0.0, 5.0):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        insert(Graph(copy), {"conv"}, ranges, {"x": np.array([mean])})
        kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
        weight, bias = (
            kept[f"conv/{part}/int"] * kept[f"conv/{part}/scale"].reshape(-1) for part in ("weight", "bias")
        )
        errors.append(abs(5.0 * float(weight.sum()) + float(bias.sum())))
    assert errors[0] > 0.005
    assert errors[1] < 0.0005
