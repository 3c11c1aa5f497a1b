"""Small, real, signed bundles: a hand-made ONNX graph whose answer tells which bundle gave it; and requests.

``actions[h, a] = state[a] + mean(images) / 255 + offset + h / 100``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import Bundle, write_bundle
from policies.config import CameraShape, FeatureStats, NormStats
from policies.golden import pack_golden
from policies.keys import KeyPair
from policies.manifest import (
    FP32_FILE,
    GOLDEN_FILE,
    INT8_FILE,
    MODEL_FILE,
    PROCESSORS_FILE,
    Manifest,
    Parity,
)
from policies.session import ChunkResult
from protos.codec import decode_tensor, encode_image, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

CHUNK = 8
SIZE = 32
CAMERAS = (
    CameraShape(name="front", height=SIZE, width=SIZE),
    CameraShape(name="wrist", height=SIZE, width=SIZE),
)
MONITORS: dict[str, Any] = {"disagreement": {"threshold": [1.0]}, "n_calibration": 50, "alpha": 0.05}


def expected(
    state: np.ndarray, images: dict[str, np.ndarray], offset: float, chunk: int = CHUNK
) -> np.ndarray:
    """What a bundle of that offset answers to one observation, float32 (H, 6)."""
    light = sum(float(image.mean()) for image in images.values()) / 255.0
    ramp = np.arange(chunk)[:, None] / 100.0
    return (state[None] + light + offset + ramp).astype(np.float32)


def make_bundle(
    out: Path,
    key: KeyPair,
    offset: float = 0.0,
    *,
    cameras: tuple[CameraShape, ...] = CAMERAS,
    chunk: int = CHUNK,
    monitors: dict[str, Any] | None = MONITORS,
    golden_offset: float | None = None,
    model: bytes | None = None,
    **meta: Any,
) -> Bundle:
    """Publish a bundle; ``golden_offset`` makes golden vectors that it does not reproduce."""
    graph = model if model is not None else _graph(offset, cameras, chunk)
    state = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    images = {c.name: np.full((2, c.height, c.width, 3), 51, dtype=np.uint8) for c in cameras}
    told = offset if golden_offset is None else golden_offset
    first = {name: image[0] for name, image in images.items()}
    actions = np.stack([expected(row, first, told, chunk) for row in state])
    unit = FeatureStats(mean=(0.0,) * 6, std=(1.0,) * 6)
    rgb = FeatureStats(mean=(0.0,) * 3, std=(1.0,) * 3)
    manifest = Manifest(
        name="tiny",
        created="2026-01-01",
        cameras=cameras,
        normalisation=NormStats(state=unit, action=unit, images={c.name: rgb for c in cameras}),
        chunk=chunk,
        execute=chunk // 2,
        feature_dim=6,
        parity=Parity(
            fp32_error=0.0,
            fp32_tolerance=1e-3,
            int8_error=0.0,
            int8_tolerance=0.1,
            int8_scheme="none",
            samples=1,
        ),
        monitors=monitors,
        files=(),
        **meta,
    )
    files: dict[str, Path | bytes] = {
        MODEL_FILE: safetensors.numpy.save({"offset": np.float32([offset])}),
        FP32_FILE: graph,
        INT8_FILE: graph,
        PROCESSORS_FILE: b"{}",
        GOLDEN_FILE: pack_golden(state, images, ChunkResult(actions, state)),
    }
    return write_bundle(out, files, manifest, key)


def make_request(
    tick: int = 0,
    state: float | np.ndarray = 0.0,
    brightness: int = 0,
    jpeg: bool = False,
    session: str = "test",
) -> pb.InferRequest:
    """A well-formed request of the tiny bundles' shape."""
    image = np.full((SIZE, SIZE, 3), brightness, dtype=np.uint8)
    vector = np.broadcast_to(np.float32(state), (6,))
    return pb.InferRequest(
        request_id=tick + 1,
        session=session,
        tick=tick,
        observation_ns=tick * 33_333_333,
        state=encode_tensor(np.array(vector)),
        images=[encode_image(c.name, image, jpeg_quality=95 if jpeg else None) for c in CAMERAS],
    )


def of(session: str, tick: int = 1, **over: Any) -> pb.InferRequest:
    """A request of that session."""
    return make_request(tick, session=session, **over)


async def stream(
    requests: Iterable[pb.InferRequest], then: asyncio.Event | None = None
) -> AsyncIterator[pb.InferRequest]:
    """What to send on a stream, which ends after ``then``."""
    for request in requests:
        yield request
    if then is not None:
        await then.wait()


def actions(reply: pb.InferResponse) -> np.ndarray:
    """float32 (H, 6), rad."""
    return decode_tensor(reply.actions, "actions", np.float32, (None, 6))


def _graph(offset: float, cameras: tuple[CameraShape, ...], chunk: int) -> bytes:
    ramp = np.arange(chunk, dtype=np.float32).reshape(1, chunk, 1) / 100.0
    constants = {
        "scale": np.float32(255.0),
        "ramp": ramp + np.float32(offset),
        "axes": np.array([1, 2, 3], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
    }
    nodes, total = [], "state"
    for camera in cameras:
        name = camera.name
        nodes += [
            helper.make_node("Cast", [f"image.{name}"], [f"{name}_f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", [f"{name}_f", "axes"], [f"{name}_m4"], keepdims=0),
            helper.make_node("Unsqueeze", [f"{name}_m4", "one"], [f"{name}_m"]),
            helper.make_node("Div", [f"{name}_m", "scale"], [f"{name}_light"]),
            helper.make_node("Add", [total, f"{name}_light"], [f"{name}_sum"]),
        ]
        total = f"{name}_sum"
    nodes += [
        helper.make_node("Unsqueeze", [total, "one"], ["row"]),
        helper.make_node("Add", ["row", "ramp"], ["actions"]),
        helper.make_node("Identity", [total], ["features"]),
    ]
    inputs = [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["B", 6])]
    inputs += [
        helper.make_tensor_value_info(f"image.{c.name}", TensorProto.UINT8, ["B", c.height, c.width, 3])
        for c in cameras
    ]
    outputs = [
        helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["B", chunk, 6]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 6]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
