"""Putting quantise and dequantise steps (QDQ) into an ONNX graph, so that integer kernels are found in it.

ONNX Runtime turns ``dequantise → operator → quantise`` into one integer kernel. What decides whether it
can is where the steps are: a convolution is quantised before and after (its ``Relu`` vanishes into
the unsigned range), a shortcut's addition and a pooling stay between integers, a ``Gemm`` gives float32
unless another takes it. Activations are uint8, weights int8 per output channel, biases int32: x86's VNNI
multiplies unsigned by signed. Of attention, queries, keys and values are int8 on symmetric scales, which
is what OpenVINO has integer kernels for, and the softmax is uint8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from policies.bias import Doubles, drift

Floats = npt.NDArray[np.float32]

Step = tuple[np.float32, np.uint8 | np.int8]
"""Scale and zero point."""

COMPUTE = ("Conv", "Gemm", "MatMul")
"""Operators worth an integer kernel of their own; what is between them follows."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value a tensor had while calibrating."""

    low: float
    high: float

    def parameters(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of an affine uint8 that holds the range and, exactly, zero."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max(high - low, 1e-12) / 255.0
        return np.float32(scale), np.uint8(np.clip(round(-low / scale), 0, 255))

    def symmetric(self) -> tuple[np.float32, np.int8]:
        """The same for an int8 whose zero is zero."""
        return np.float32(max(-self.low, self.high, 1e-12) / 127.0), np.int8(0)


class Graph:
    """An ONNX graph with the look-ups that editing needs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        for i, node in enumerate(self.graph.node):
            node.name = node.name or f"{node.op_type}_{i}"
        self.index()

    def index(self) -> None:
        """Look again who makes and who reads each tensor."""
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> Floats:
        """An initialiser's values."""
        return numpy_helper.to_array(self.weights[name])

    def put(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Add an initialiser, once; returns its name."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(value, name)
            self.graph.initializer.append(self.weights[name])
        return name

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of ``node`` that are no weights."""
        return [name for name in node.input if name and name not in self.weights]

    def result(self, node: onnx.NodeProto) -> str:
        """What ``node`` gives, after the Relu (or ReLU6, a Clip) that alone reads it, if there is one."""
        readers = self.readers.get(node.output[0], [])
        relu = len(readers) == 1 and readers[0].op_type in ("Relu", "Clip")
        return readers[0].output[0] if relu else node.output[0]

    def shapes(self) -> dict[str, list[int]]:
        """Of every tensor whose shape is known; 0 where a size is not, as for the batch."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        return {v.name: [size.dim_value for size in v.type.tensor_type.shape.dim] for v in values}

    def dequantised(self, name: str) -> onnx.NodeProto | None:
        """The step by which a tensor comes out of a quantised one already, as folded pixels do, or None."""
        node = self.producer.get(name)
        while node is not None and node.op_type == "Transpose":
            node = self.producer.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def compute(self) -> Iterator[onnx.NodeProto]:
        """The nodes that can be quantised by choice, in the graph's order."""
        return (node for node in self.graph.node if node.op_type in COMPUTE)

    def attention(self) -> list[onnx.NodeProto]:
        """The products of queries and keys, and of their softmax and values, where neither is constant."""
        constant = set(self.weights)
        products = [n for n in self.graph.node if n.op_type == "MatMul" and not constant & set(n.input)]
        return [node for node in products if self.scores(node) or self.softmaxed(node.input[0])]

    def scores(self, node: onnx.NodeProto) -> bool:
        """Whether what ``node`` gives goes into a softmax."""
        return [reader.op_type for reader in self.readers.get(node.output[0], [])] == ["Softmax"]

    def softmaxed(self, name: str) -> bool:
        """Whether a tensor comes out of a softmax."""
        return name in self.producer and self.producer[name].op_type == "Softmax"

    def sort(self) -> None:
        """Nodes in an order in which each finds its inputs made; what nothing reads is gone."""
        self.index()
        done: set[str] = set()
        ordered: list[onnx.NodeProto] = []
        for output in self.graph.output:
            pending = [self.producer[output.name]]
            while pending:
                node = pending[-1]
                before = [self.producer[n] for n in node.input if n in self.producer and n not in done]
                if before:
                    pending.extend(before)
                    continue
                pending.pop()
                if node.output[0] not in done:
                    ordered.append(node)
                    done.update(node.output)
        del self.graph.node[:]
        self.graph.node.extend(ordered)
        used = {name for node in ordered for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.index()


def followers(graph: Graph, chosen: Collection[str]) -> list[onnx.NodeProto]:
    """Additions and poolings all of whose inputs come out of ``chosen`` convolutions."""
    integer = {graph.result(n) for n in graph.compute() if n.name in chosen and n.op_type == "Conv"}
    found = []
    for node in graph.graph.node:
        if node.op_type in ("Add", "MaxPool") and set(node.input) <= integer:
            found.append(node)
            integer.add(graph.result(node))
    return found


def wanted(graph: Graph, chosen: Collection[str]) -> list[str]:
    """The tensors whose ranges `insert` needs for ``chosen``."""
    nodes = [node for node in graph.compute() if node.name in chosen]
    names = {name for node in nodes for name in graph.activations(node)}
    names |= {graph.result(node) for node in nodes if node.op_type == "Conv"}
    for node in followers(graph, chosen):
        names |= {*node.input, graph.result(node)}
    return sorted(name for name in names if graph.dequantised(name) is None)


def insert(
    graph: Graph, chosen: Collection[str], ranges: Mapping[str, Range], means: Mapping[str, Doubles]
) -> None:
    """Quantise the nodes named in ``chosen`` and what follows from them, in place.

    ``means`` (C,) of the channels that layers read, by tensor: what rounding a layer's weights adds to its
    outputs on average is taken from its bias.
    """
    nodes = [node for node in graph.compute() if node.name in chosen]
    follow = followers(graph, chosen)
    mixing = [node for node in graph.attention() if node.name in chosen]
    signed = {name for node in mixing for name in node.input if not graph.softmaxed(name)}
    parameters: dict[str, Step] = {
        name: ranges[name].symmetric() if name in signed else ranges[name].parameters()
        for name in wanted(graph, chosen)
    }
    for node in follow:
        if node.op_type == "MaxPool":  # a choice among its inputs: the same scale
            parameters[graph.result(node)] = parameters[node.input[0]]
    everywhere = {graph.result(n) for n in (*nodes, *follow) if n.op_type != "Gemm" and n.op_type != "MatMul"}
    inside = {node.name for node in (*nodes, *follow)}
    for node in nodes:
        _weights(graph, node, parameters, means)
    for name, (scale, zero) in parameters.items():
        steps = _pair(graph, name, scale, zero)
        for reader in graph.readers.get(name, []):
            if name in everywhere or reader.name in inside:
                _rename(reader, name, f"{name}/dq")
        graph.graph.node.extend(steps)
    graph.sort()


def _pair(graph: Graph, name: str, scale: np.float32, zero: np.uint8 | np.int8) -> list[onnx.NodeProto]:
    at = graph.put(f"{name}/scale", np.array(scale)), graph.put(f"{name}/zero", np.array(zero))
    return [
        helper.make_node("QuantizeLinear", [name, *at], [f"{name}/q"], f"{name}/Q"),
        helper.make_node("DequantizeLinear", [f"{name}/q", *at], [f"{name}/dq"], f"{name}/DQ"),
    ]


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new


def _weights(
    graph: Graph,
    node: onnx.NodeProto,
    parameters: Mapping[str, Step],
    means: Mapping[str, Doubles],
) -> None:
    """Weights as int8 per output channel, the bias as int32 in the accumulator's scale.

    Both are the node's own afterwards: equal biases may have been one constant, but not on one scale.
    """
    if len(node.input) < 2 or node.input[1] not in graph.weights:
        return
    source = node.input[0]
    already = graph.dequantised(source)
    if already is not None:
        of_input = graph.value(already.input[1])
    else:
        of_input = np.asarray(parameters[source][0])
    weight = graph.value(node.input[1])
    axis = 0 if node.op_type == "Conv" or transposed(node) else weight.ndim - 1
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others) / np.float32(127)
    if len(node.input) > 2 and node.input[2] in graph.weights:
        # A channel whose weights are all but zero still has a bias, which must fit the accumulator.
        scale = np.maximum(scale, np.abs(graph.value(node.input[2])) / (of_input * np.float32(2**24)))
    scale = np.maximum(scale, np.float32(1e-12))
    steps = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    integers = np.clip(np.rint(weight / steps), -127, 127).astype(np.int8)
    node.input[1] = _stored(graph, f"{node.name}/weight", integers, scale, axis)
    if len(node.input) > 2 and node.input[2] in graph.weights:
        step = scale * of_input
        added = drift(integers * steps - weight, means[source], last=axis > 0)
        bias = np.rint((graph.value(node.input[2]) - added) / step).astype(np.int32)
        node.input[2] = _stored(graph, f"{node.name}/bias", bias, step, 0)


def transposed(node: onnx.NodeProto) -> bool:
    """Whether a ``Gemm``'s weight is stored (outputs, inputs)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _stored(graph: Graph, name: str, integers: npt.NDArray[np.integer], scale: Floats, axis: int) -> str:
    names = [
        graph.put(f"{name}/int", integers),
        graph.put(f"{name}/scale", scale),
        graph.put(f"{name}/zero", np.zeros(len(scale), integers.dtype)),
    ]
    node = helper.make_node("DequantizeLinear", names, [f"{name}/dq"], f"{name}/DQ", axis=axis)
    graph.graph.node.append(node)
    return f"{name}/dq"
