"""Pixels straight into the first convolution of an ONNX graph: no float picture is ever made.

uint8 pixels already are a quantised tensor, of scale 1 and zero point 0. The normalisation goes into the
convolution, ``W·((x − m)·s) + b = (W·s)·x + (b − Σ W·s·m)``. Only its zero padding changes its meaning,
from the mean colour to black, so the mean colour (rounded to a pixel value) is padded before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from policies.qdq import Graph


def fold_pixels(graph: Graph) -> list[str]:
    """Fold every normalisation of pixels into the convolution that reads it, in place.

    Returns the tensors those convolutions now read: dequantised pixels, of scale 1 and zero point 0. Where
    the pattern is not found (several readers, another order) nothing is changed and nothing returned.
    """
    found = []
    for conv in [node for node in graph.graph.node if node.op_type == "Conv"]:
        scaled = graph.producer.get(conv.input[0])
        shifted = graph.producer.get(scaled.input[0]) if scaled is not None else None
        if scaled is None or shifted is None or (scaled.op_type, shifted.op_type) != ("Mul", "Sub"):
            continue
        if not {scaled.input[1], shifted.input[1]} <= set(graph.weights):
            continue
        if len(graph.readers[scaled.output[0]]) > 1 or len(graph.readers[shifted.output[0]]) > 1:
            continue
        found.append(_fold(graph, conv, scaled, shifted))
    graph.sort()
    return found


def _fold(graph: Graph, conv: onnx.NodeProto, scaled: onnx.NodeProto, shifted: onnx.NodeProto) -> str:
    weight = graph.value(conv.input[1])
    scale = np.broadcast_to(graph.value(scaled.input[1]).reshape(1, -1, 1, 1), (1, weight.shape[1], 1, 1))
    mean = np.broadcast_to(graph.value(shifted.input[1]).reshape(1, -1, 1, 1), scale.shape)
    bias = graph.value(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weight), np.float32)
    folded = weight.astype(np.float64) * scale
    prefix = conv.name or conv.output[0]
    names = [
        graph.put(f"{prefix}/pixel_weight", folded.astype(np.float32)),
        graph.put(f"{prefix}/pixel_bias", (bias - (folded * mean).sum(axis=(1, 2, 3))).astype(np.float32)),
    ]
    source = _pixels(graph, conv, shifted.input[0], np.rint(mean.reshape(-1)).astype(np.uint8))
    del conv.input[:]
    conv.input.extend([source, *names])
    for node in (scaled, shifted):
        graph.graph.node.remove(node)
    graph.index()
    return source


def _pixels(graph: Graph, conv: onnx.NodeProto, picture: str, colour: npt.NDArray[np.uint8]) -> str:
    """uint8 pixels of the float ``picture`` with the convolution's padding in ``colour``, dequantised."""
    height, width = graph.shapes()[picture][2:]
    one, zero = (
        graph.put("pixel/one", np.array(1, np.float32)),
        graph.put("pixel/zero", np.array(0, np.uint8)),
    )
    cast = graph.producer[picture]
    turn = graph.producer.get(cast.input[0])
    prefix = conv.name or conv.output[0]
    raw = cast.op_type == "Cast" and turn is not None and turn.op_type == "Transpose"
    nodes = []
    if raw and turn is not None:
        source, axes = turn.input[0], (1, 2)  # as the camera gives it: (B, H, W, 3)
    else:
        source, axes = f"{prefix}/pixels", (2, 3)  # resized: float, rounded to pixel values
        nodes.append(helper.make_node("QuantizeLinear", [picture, one, zero], [source], f"{source}/Q"))
    pads = _take_pads(conv)
    if any(pads):
        widths = np.zeros((4, 2), np.int64)
        widths[axes[0]], widths[axes[1]] = (pads[0], pads[2]), (pads[1], pads[3])
        inner = (1, height, width, 3) if raw else (1, 3, height, width)
        border = np.ones([n + sum(w) for n, w in zip(inner, widths, strict=True)], np.uint8)
        border[tuple(slice(w[0], w[0] + n) for n, w in zip(inner, widths, strict=True))] = 0
        border *= colour if raw else colour.reshape(3, 1, 1)
        around = graph.put(f"{prefix}/around", widths.T.reshape(-1))
        nodes.append(helper.make_node("Pad", [source, around, zero], [f"{prefix}/padded"], f"{prefix}/Pad"))
        frame = graph.put(f"{prefix}/border", border)
        # Black where the colour goes, and the colour where the picture is not: one of the two is 0.
        source = f"{prefix}/framed"
        nodes.append(helper.make_node("BitwiseOr", [f"{prefix}/padded", frame], [source], f"{prefix}/Frame"))
    out = f"{prefix}/pixels/dq"
    # Turned only after the step: of pixels turned before it, OpenVINO makes floating-point numbers.
    values = f"{prefix}/values" if raw else out
    nodes.append(helper.make_node("DequantizeLinear", [source, one, zero], [values], f"{prefix}/DQ"))
    if raw:
        nodes.append(helper.make_node("Transpose", [values], [out], f"{prefix}/Turn", perm=[0, 3, 1, 2]))
    graph.graph.node.extend(nodes)
    return out


def _take_pads(conv: onnx.NodeProto) -> list[int]:
    """The convolution's padding (top, left, bottom, right), which it then no longer does."""
    for attribute in conv.attribute:
        if attribute.name == "pads":
            pads = list(attribute.ints)
            attribute.ints[:] = [0] * len(pads)
            return pads
    return [0, 0, 0, 0]
