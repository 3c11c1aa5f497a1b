"""The four forms of one ACT that `ratchet bench inference` runs beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from policies.act import ACT
from policies.bundle import Bundle
from policies.config import IMAGENET_MEAN, IMAGENET_STD, CameraShape, FeatureStats, NormStats, act_full
from policies.export import RawBatch, export_bundle
from policies.fastest import open_fastest
from policies.keys import KeyPair, TrustStore
from policies.manifest import BundleMeta
from policies.normalise import Normaliser
from policies.session import OnnxSession, PolicySession
from tools.bench.inference_peer import LeRobotACT, compiled
from tools.bench.pictures import scene

_STD = 0.5  # rad
_CAMERAS = ("front", "wrist")
_OBSERVATIONS = 12
_TESTED = 4


@dataclass(frozen=True, slots=True)
class Forms:
    """``run`` infers once from one fixed observation, ``settings`` the int8 form under other settings;
    ``errors`` by form; the ``engine`` of int8; what was ``left_out`` and why."""

    run: dict[str, Callable[[], object]]
    settings: dict[str, Callable[[], object]]
    errors: dict[str, dict[str, float]]
    scheme: str
    engine: str
    left_out: dict[str, str]


def prepare(size: tuple[int, int], threads: int, spinning: bool, compile: bool, root: Path) -> Forms:
    """Make every form for two cameras of ``size`` (height, width); bundles and pictures go below ``root``."""
    torch.set_num_threads(threads)
    height, width = size
    torch.manual_seed(0)
    config = act_full(tuple(CameraShape(name=n, height=height, width=width) for n in _CAMERAS))
    model = ACT(config).eval()
    stats = NormStats(
        state=FeatureStats(mean=(0.0,) * 6, std=(_STD,) * 6),
        action=FeatureStats(mean=(0.0,) * 6, std=(_STD,) * 6),
        images={name: FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD) for name in _CAMERAS},
    )
    batch = _observations(size, root)
    seen = RawBatch(batch.state[_TESTED:], {n: v[_TESTED:] for n, v in batch.images.items()})
    key = KeyPair.generate()
    folder = root / f"bundle-{width}x{height}"
    export_bundle(model, Normaliser(stats, config), folder, key, BundleMeta(name="bench"), [seen])
    bundle = Bundle.open(folder, TrustStore([key.public]))
    return _forms(bundle, model, stats, batch, threads, spinning, compile)


def _observations(size: tuple[int, int], root: Path) -> RawBatch:
    """The bench's scene, at ``size``: pictures with the statistics of pictures, not noise."""
    drawn = scene(len(_CAMERAS), _OBSERVATIONS, root / "scene")
    pictures = {
        name: np.stack([cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in shown])
        for name, shown in zip(_CAMERAS, drawn, strict=True)
    }
    state = _STD * np.random.default_rng(0).normal(size=(_OBSERVATIONS, 6)).astype(np.float32)
    return RawBatch(state.astype(np.float32), {n: v.astype(np.uint8) for n, v in pictures.items()})


def _forms(
    bundle: Bundle,
    model: ACT,
    stats: NormStats,
    batch: RawBatch,
    threads: int,
    spinning: bool,
    compile: bool,
) -> Forms:
    eager, exact = LeRobotACT(model, stats), LeRobotACT(model, stats, torch.float64)
    torched: dict[str, Any] = {"eager": eager}
    left_out: dict[str, str] = {}
    if compile:
        try:
            torched["compile"] = compiled(eager, _tensors(eager, batch, 0))
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            left_out["compile"] = str(error).strip().splitlines()[0]
    else:
        left_out["compile"] = "--no-compile"
    sessions: dict[str, PolicySession] = {
        "onnx_fp32": open_fastest(bundle, "fp32", threads, spinning),
        "onnx_int8": open_fastest(bundle, "int8", threads, spinning),
    }
    others: dict[str, PolicySession] = {
        "one_thread": open_fastest(bundle, "int8", 1),
        "onnxruntime": OnnxSession(bundle, "int8", threads),
        "onnxruntime_spinning": OnnxSession(bundle, "int8", threads, spinning=True),
    }
    sessions |= others

    def infer(form: str, row: int) -> np.ndarray[Any, Any]:
        if form in sessions:
            pictures = {name: value[row : row + 1] for name, value in batch.images.items()}
            return sessions[form].infer(batch.state[row : row + 1], pictures).actions
        with torch.inference_mode() if form == "eager" else torch.no_grad():
            return np.asarray(torched[form](*_tensors(eager, batch, row)).numpy())

    with torch.inference_mode():
        truth = [exact(*_tensors(exact, batch, row)).numpy() for row in range(_TESTED)]
    bound = {form: _bound(infer, form) for form in (*torched, *sessions)}
    settings = {form: bound.pop(form) for form in others}
    errors = {form: _distance([infer(form, row) for row in range(_TESTED)], truth) for form in bound}
    return Forms(
        bound,
        settings,
        errors,
        bundle.manifest.parity.int8_scheme,
        sessions["onnx_int8"].providers[0],
        left_out,
    )


def _bound(infer: Callable[[str, int], object], form: str) -> Callable[[], object]:
    return lambda: infer(form, 0)


def _tensors(model: LeRobotACT, batch: RawBatch, row: int) -> list[torch.Tensor]:
    images = {name: torch.from_numpy(value[row]) for name, value in batch.images.items()}
    return model.inputs(torch.from_numpy(batch.state[row]), images)


def _distance(actual: list[np.ndarray[Any, Any]], exact: list[np.ndarray[Any, Any]]) -> dict[str, float]:
    """Mean and largest absolute error in standard deviations of the action."""
    off = np.abs(np.concatenate(actual) - np.concatenate(exact)) / _STD
    return {"mean": float(f"{off.mean():.3g}"), "max": float(f"{off.max():.3g}")}
