"""`ratchet bench backbones`: ACT over each image backbone, int8 and float32, in turn on the same pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from policies.bundle import Precision
from tools.bench.common import quantile, show
from tools.console import say
from tools.options import FiniteRange, json_flag

if TYPE_CHECKING:  # torch takes a second
    from policies.act import ACT
    from policies.bundle import Bundle
    from policies.config import ACTConfig, FeatureStats
    from policies.export import RawBatch
    from policies.session import PolicySession

HEIGHT, WIDTH = 480, 640
CAMERAS = ("front", "wrist")
BACKBONES = ("efficientnet_lite0", "resnet18")
PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")
RATE_HZ = 15.0
BUDGET_MS = 66.0
"""One inference in a period of 15 Hz, at the median and at the 99th percentile."""
_STD = 0.5  # rad
_OBSERVATIONS = 4
_LEAST_ROUNDS = 10


@click.command(epilog="\b\nExample:\n  ratchet bench backbones --json")
@click.option(
    "--threads", type=click.IntRange(1, 64), help="Of both [default: the processors here, at most 2]."
)
@click.option("--seconds", type=FiniteRange(0.1, 600), default=20.0, show_default=True)
@json_flag
def command(threads: int | None, seconds: float, as_json: bool) -> None:
    """ACT (dim 512, 4 encoder layers, chunk 100) over two 640x480 cameras: both backbones side by side.

    EfficientNet-Lite0 has its ImageNet weights where their package is installed; all else is untrained.
    """
    count = threads or min(2, len(os.sched_getaffinity(0)))
    rows = measure(seconds, count)
    figures = {
        "model": "ACT, dim 512, 4 encoder layers, chunk 100, two 640x480 cameras, batch 1, untrained",
        "threads": count,
        "backbones": rows,
        "held": rows["efficientnet_lite0"]["int8_hz"]["held"],
    }
    show(figures, as_json)


def measure(
    seconds: float, threads: int, spinning: bool = False, names: Sequence[str] = BACKBONES
) -> dict[str, Any]:
    """Figures by backbone: times in ms, errors in standard deviations of the action.

    Every form is run once a round, each round beginning with another, for ``seconds`` in all.
    """
    from policies.fastest import open_fastest

    with TemporaryDirectory(prefix="ratchet-bench-backbones-") as made:
        batch = _observations(Path(made))
        rows: dict[str, Any] = {}
        sessions: dict[tuple[str, str], PolicySession] = {}
        for name in names:
            say(f"{name}: exporting and quantising")
            rows[name], bundle = _prepare(name, batch, threads, Path(made))
            for precision in PRECISIONS:
                sessions[name, precision] = open_fastest(bundle, precision, threads, spinning)
        say("measuring")
        times = _rounds({key: _once(session, batch) for key, session in sessions.items()}, seconds)
    for name, row in rows.items():
        for precision in PRECISIONS:
            found = times[name, precision]
            row[f"onnx_{precision}_ms"] = {"p50": quantile(found, 50), "p99": quantile(found, 99)}
        row["rounds"] = len(times[name, "int8"])
        slowest = row["onnx_int8_ms"]["p99"]
        budget = RATE_HZ if name == "efficientnet_lite0" else None
        row["int8_hz"] = {
            "reached": round(1000.0 / slowest, 2),
            "budget": budget,
            "held": None if budget is None else slowest <= BUDGET_MS,
        }
    return rows


def _prepare(name: str, batch: RawBatch, threads: int, root: Path) -> tuple[dict[str, Any], Bundle]:
    """Export the network over backbone ``name``; what is known of it before it runs, and its bundle."""
    import torch

    from policies.act import ACT
    from policies.config import FeatureStats, NormStats
    from policies.export import export_bundle
    from policies.keys import KeyPair
    from policies.manifest import BundleMeta
    from policies.normalise import Normaliser

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = _config(name)
    model = ACT(config).eval()
    weights, pictures = _weights(model)
    joints = FeatureStats(mean=(0.0,) * 6, std=(_STD,) * 6)
    stats = NormStats(state=joints, action=joints, images=dict.fromkeys(CAMERAS, pictures))
    bundle = export_bundle(
        model, Normaliser(stats, config), root / name, KeyPair.generate(), BundleMeta(name="bench"), [batch]
    )
    backbone = sum(value.numel() for net in model.backbones() for value in net.state_dict().values())
    known = {
        "values": sum(p.numel() for p in model.parameters()),
        "backbone_values": backbone,
        "backbone_weights": weights,
        "int8_error": float(f"{bundle.manifest.parity.int8_error:.3g}"),
        "int8_scheme": bundle.manifest.parity.int8_scheme,
    }
    return known, bundle


def _config(name: str) -> ACTConfig:
    from policies.config import ACTConfig, CameraShape, act_full

    cameras = tuple(CameraShape(name=camera, height=HEIGHT, width=WIDTH) for camera in CAMERAS)
    return ACTConfig.model_validate({**act_full(cameras).model_dump(), "backbone": name})


def _weights(model: ACT) -> tuple[str, FeatureStats]:
    """Load ImageNet's weights where this machine has them; which they are, and their normalisation."""
    from policies.config import IMAGENET_MEAN, IMAGENET_STD, FeatureStats
    from policies.errors import PretrainedError
    from policies.pretrained import load_pretrained

    try:
        return "imagenet", load_pretrained(model, "imagenet")
    except PretrainedError:
        return "untrained", FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _observations(root: Path) -> RawBatch:
    """The bench's scene: pictures with the statistics of pictures, not noise."""
    import numpy as np

    from policies.export import RawBatch
    from tools.bench.pictures import scene

    drawn = scene(len(CAMERAS), _OBSERVATIONS, root / "scene")
    state = _STD * np.random.default_rng(0).normal(size=(_OBSERVATIONS, 6))
    pictures = {name: np.stack(shown) for name, shown in zip(CAMERAS, drawn, strict=True)}
    return RawBatch(state.astype(np.float32), pictures)


def _once(session: PolicySession, batch: RawBatch) -> Callable[[], object]:
    state, images = batch.state[:1], {name: value[:1] for name, value in batch.images.items()}
    return lambda: session.infer(state, images)


def _rounds(
    run: Mapping[tuple[str, str], Callable[[], object]], seconds: float
) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {key: [] for key in run}
    for infer in run.values():
        for _ in range(3):
            infer()
    keys, turn, until = list(run), 0, time.perf_counter() + seconds
    while turn < _LEAST_ROUNDS or time.perf_counter() < until:
        for offset in range(len(keys)):
            key = keys[(turn + offset) % len(keys)]
            begun = time.perf_counter()
            run[key]()
            times[key].append((time.perf_counter() - begun) * 1e3)
        turn += 1
    return times
