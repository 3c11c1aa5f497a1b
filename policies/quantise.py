"""An int8 form of an ONNX policy: static, per output channel, calibrated on real observations.

Which layers stay in float32 is measured for these weights: each block is quantised alone and the
actions it then gives are compared (see `rank`). What costs little and hurts much is kept; more only
where the tolerance asks for it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from policies.bias import Doubles, channel_means
from policies.engine import session_options
from policies.pixels import fold_pixels
from policies.qdq import Graph, Range, insert, transposed, wanted

logger = logging.getLogger(__name__)

Feed = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float32]

FREE_WORK = 0.005
"""Share of the multiplications that may stay in float32 without being asked for by the tolerance.

One in float32 takes as long as about four in int8.
"""
_MATTERS = 0.02
"""Share of the summed squared errors below which a block is not worth keeping."""
_PROBES = 8
"""Observations each block is tried with."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is quantised together: a linear layer, a residual block's convolutions, a product of attention.

    ``error`` is what quantising it alone does to the actions, mean absolute, in standard deviations;
    ``work`` its share of all multiplications.
    """

    name: str
    nodes: tuple[str, ...]
    work: float
    error: float = 0.0

    @property
    def harm(self) -> float:
        """Squared error a multiplication: errors of many blocks add up in squares."""
        return self.error**2 / self.work


@dataclass(frozen=True, slots=True)
class Quantised:
    """What became of it: ``error`` of the actions, and the blocks ``kept`` in float32."""

    error: float
    kept: tuple[Block, ...]
    blocks: tuple[Block, ...]

    @property
    def scheme(self) -> str:
        """For people, at most 512 characters."""
        work = sum(block.work for block in self.kept)
        names = ", ".join(block.name for block in self.kept) or "none"
        text = (
            "QDQ uint8×int8 per channel; float32, by measurement, "
            f"{len(self.kept)} of {len(self.blocks)} blocks ({work:.1%} of the work): {names}"
        )
        return text if len(text) <= 512 else text[:508] + " …"


class Quantiser:
    """One float32 graph with its calibration, from which any selection of blocks can be quantised."""

    def __init__(self, source: Path, feeds: Sequence[Feed], expected: Floats, std: Floats) -> None:
        """``feeds`` are inputs for the ranges; ``expected`` (N, H, A) the actions they ought to give."""
        self._feeds, self._expected, self._std = feeds, expected, std
        graph = Graph(_prepared(source))
        fold_pixels(graph)
        self._model = graph.model
        weighted = [n for n in graph.compute() if len(n.input) > 1 and n.input[1] in graph.weights]
        nodes = [*weighted, *graph.attention()]
        self._ranges, sizes, self._means = _calibrate(graph, nodes, feeds)
        self.blocks = _blocks(graph, nodes, sizes)
        """Every block, in the graph's order."""

    def make(self, blocks: Iterable[Block]) -> bytes:
        """The model with only ``blocks`` quantised."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = Graph(model)
        insert(graph, {name for block in blocks for name in block.nodes}, self._ranges, self._means)
        data: bytes = model.SerializeToString()
        return data

    def error(self, data: bytes, probes: int | None = None) -> float:
        """Mean |actions − expected| of a made model in standard deviations; infinity where not finite."""
        feeds, expected = self._feeds, self._expected
        if probes is not None and len(expected) > probes:
            rows = np.linspace(0, len(expected) - 1, probes).round().astype(int)
            whole = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            feeds, expected = [{name: value[rows] for name, value in whole.items()}], expected[rows]
        session = _session(data)
        actual = np.concatenate([session.run(["actions"], dict(feed))[0] for feed in feeds])
        distance = np.abs(actual - expected) / self._std
        return float(distance.mean()) if np.isfinite(distance).all() else float("inf")


def quantise(quantiser: Quantiser, tolerance: float, out: Path) -> Quantised:
    """Measure, choose what stays in float32, and write the int8 form to ``out``.

    The result may be beyond ``tolerance``: then nothing worth calling int8 is within it.
    """
    blocks = rank(quantiser)
    kept = _cheap(blocks)
    while True:
        chosen = [block for block in blocks if block not in kept]
        data = quantiser.make(chosen)
        error = quantiser.error(data)
        if error <= tolerance or sum(block.work for block in kept) > 0.5:
            break
        logger.warning("int8_beyond_tolerance error=%.3g kept=%d", error, len(kept))
        kept += sorted(chosen, key=lambda block: block.error)[-max(1, len(kept)) :]
    out.write_bytes(data)
    return Quantised(error, tuple(kept), tuple(blocks))


def rank(quantiser: Quantiser) -> list[Block]:
    """Every block with its error when it alone is quantised, the most harmful first."""
    measured = [
        Block(b.name, b.nodes, b.work, quantiser.error(quantiser.make([b]), _PROBES))
        for b in quantiser.blocks
    ]
    return sorted(measured, key=lambda block: -block.harm)


def _cheap(ranked: Sequence[Block]) -> list[Block]:
    total = sum(block.error**2 for block in ranked)
    kept: list[Block] = []
    for block in ranked:
        matters = block.error**2 > _MATTERS * total
        if matters and sum(b.work for b in kept) + block.work <= FREE_WORK:
            kept.append(block)
    return kept


def _prepared(source: Path) -> onnx.ModelProto:
    """The model with norms folded into convolutions and constants worked out, by ONNX Runtime."""
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="ratchet-prepare-") as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _calibrate(
    graph: Graph, nodes: Sequence[onnx.NodeProto], feeds: Sequence[Feed]
) -> tuple[dict[str, Range], dict[str, float], dict[str, Doubles]]:
    """Range of each tensor that ``nodes`` need, values per observation; channel means of what they read."""
    read = {node.input[0] for node in nodes if node.input[1] in graph.weights}
    inputs = {node.input[0] for node in nodes}
    names = sorted({*wanted(graph, {node.name for node in nodes}), *inputs})
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = _session(model.SerializeToString())
    low = dict.fromkeys(names, float("inf"))
    high = dict.fromkeys(names, float("-inf"))
    count = dict.fromkeys(names, 0.0)
    means: dict[str, list[Doubles]] = {name: [] for name in read}
    rows = 0
    for feed in feeds:
        rows += len(next(iter(feed.values())))
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
            count[name] += value.size
            if name in read:
                means[name].append(channel_means(value))
    return (
        {n: Range(low[n], high[n]) for n in names},
        {n: count[n] / rows for n in names},
        {n: np.mean(found, axis=0) for n, found in means.items()},
    )


def _blocks(graph: Graph, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, float]) -> list[Block]:
    members: dict[str, list[str]] = {}
    work: dict[str, float] = {}
    shapes = graph.shapes()
    for node in nodes:
        path = node.name.strip("/").split("/")
        name = ".".join(path[: -2 if node.op_type == "Conv" and len(path) > 2 else -1]) or node.name
        constant = node.input[1] in graph.weights
        if not constant:
            name += ".scores" if graph.scores(node) else ".values"
        members.setdefault(name, []).append(node.name)
        if not constant:  # each query meets every key, each weight every value
            work[name] = work.get(name, 0.0) + sizes[node.input[0]] * shapes[node.input[1]][-1]
            continue
        weight = graph.value(node.input[1])
        if node.op_type == "Conv":  # each output value is a sum over one filter
            products = sizes[graph.result(node)] * weight.size / len(weight)
        else:  # each input value meets every output
            products = sizes[node.input[0]] * weight.size / max(1, _inputs(graph, node))
        work[name] = work.get(name, 0.0) + products
    total = sum(work.values())
    return [Block(name, tuple(members[name]), work[name] / total) for name in members]


def _inputs(graph: Graph, node: onnx.NodeProto) -> int:
    shape = graph.value(node.input[1]).shape
    return int(shape[1] if transposed(node) else shape[0])


def _session(data: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(data, session_options(1), providers=["CPUExecutionProvider"])
