"""An int8 form of an ONNX policy: static, per channel, calibrated on real observations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Feed = Mapping[str, npt.NDArray[np.generic]]
_HEAD = "action_head"


@dataclass(frozen=True)
class Scheme:
    """Which operators become int8. What is left out stays in float32."""

    name: str
    operators: tuple[str, ...]
    keep_first_conv: bool


SCHEMES = (
    Scheme("QDQ uint8×int8: convolutions, linear layers", ("Conv", "MatMul", "Gemm"), False),
    Scheme("QDQ uint8×int8: convolutions but the first of each backbone", ("Conv",), True),
)
"""From fastest to most exact. Attention's products, softmax, norms and the action head always stay
float32, by precaution: they are a small part of the work, and the error hardly depends on them."""


def quantise(source: Path, out: Path, feeds: Sequence[Feed], scheme: Scheme) -> None:
    """Write the int8 form of the float32 model at ``source`` to ``out``.

    ``feeds`` are model inputs whose activations set the ranges (minimum and maximum seen).
    """
    prepared = out.with_suffix(".prepared.onnx")
    with _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(scheme.operators),
            nodes_to_exclude=_sensitive(onnx.load(prepared).graph, scheme),
        )
    prepared.unlink()


def _sensitive(graph: onnx.GraphProto, scheme: Scheme) -> list[str]:
    weights = {initializer.name for initializer in graph.initializer}
    images = {value.name for value in graph.input if value.name.startswith("image.")}
    names = []
    for node in graph.node:
        product = node.op_type in ("MatMul", "Gemm") and not weights & set(node.input)
        if product or _HEAD in node.name or (scheme.keep_first_conv and _reads(node, graph, images)):
            names.append(node.name)
    return names


def _reads(node: onnx.NodeProto, graph: onnx.GraphProto, images: set[str]) -> bool:
    """Whether a convolution's pictures come from the graph's inputs without another convolution between."""
    if node.op_type != "Conv":
        return False
    producer = {output: other for other in graph.node for output in other.output}
    pending = [node.input[0]]
    while pending:
        name = pending.pop()
        if name in images:
            return True
        other = producer.get(name)
        if other is not None and other.op_type != "Conv":
            pending.extend(other.input)
    return False


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._iterator: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._iterator, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser writes advice to the root logger, about a step that has already been done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
