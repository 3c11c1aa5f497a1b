"""From a trained network to a bundle: safetensors, ONNX float32, ONNX int8, golden vectors, manifest.

A bundle is published only when its ONNX forms give what the torch form gives, within the
tolerances the manifest states.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import safetensors.torch
import torch
from torch import Tensor, nn

from policies.act import ACT
from policies.bundle import Bundle, write_bundle
from policies.deployed import DeployedACT
from policies.engine import OPENVINO, session_options, skipped
from policies.errors import ExportError
from policies.golden import pack_golden
from policies.keys import KeyPair
from policies.manifest import (
    FP32_FILE,
    GOLDEN_FILE,
    INT8_FILE,
    MODEL_FILE,
    PROCESSORS_FILE,
    BundleMeta,
    Manifest,
    Parity,
    now_label,
)
from policies.normalise import Normaliser
from policies.processors import Processors
from policies.quantise import Feed, Quantiser, quantise
from policies.session import ChunkResult, Floats, Pixels

logger = logging.getLogger(__name__)

OPSET = 18
GOLDEN_SAMPLES = 2


class RawBatch(NamedTuple):
    """Observations as the robot gives them: ``state`` float32 (B, S) rad, ``images`` uint8 (B, H, W, 3)."""

    state: Floats
    images: Mapping[str, Pixels]


@dataclass(frozen=True)
class Tolerances:
    """How far the ONNX forms may be from torch, in standard deviations of the action (see `Parity`)."""

    fp32_max: float = 1e-4
    int8_mean: float = 0.05


class ServedACT(nn.Module):
    """Raw observation in, raw actions out: what every form of a bundle computes."""

    def __init__(self, model: ACT, normaliser: Normaliser) -> None:
        super().__init__()
        self.model = model
        self.normaliser = normaliser

    def forward(self, state: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        """``state`` (B, S) rad, uint8 (B, H, W, 3) per camera → actions (B, H, A) rad, features (B, D)."""
        pictures = [self.normaliser.image(index, image) for index, image in enumerate(images)]
        output = self.model(self.normaliser.state(state), pictures)
        return self.normaliser.restore_actions(output.actions), output.features


def export_bundle(
    model: ACT,
    normaliser: Normaliser,
    out_dir: Path,
    key: KeyPair,
    meta: BundleMeta,
    calibration_batches: Sequence[RawBatch],
    tolerances: Tolerances | None = None,
) -> Bundle:
    """Export, compare, sign and publish at ``out_dir`` (which must not exist).

    ``calibration_batches`` are real observations, some dozens are enough; they set the int8
    ranges, measure the errors stated in the manifest, and the first of them become golden vectors.
    ``model`` is used in evaluation mode and left as it was. Raises ExportError when a form is
    beyond its tolerance or there is nothing to calibrate with.
    """
    tolerances = tolerances or Tolerances()
    config = model.config
    samples = _merge(calibration_batches, [camera.name for camera in config.cameras])
    device = next(model.parameters()).device
    training = model.training
    served = ServedACT(model.cpu().eval(), normaliser.cpu()).eval()
    try:
        with tempfile.TemporaryDirectory(prefix="ratchet-export-") as folder:
            work = Path(folder)
            expected = _torch_chunks(served, samples)
            export_onnx(DeployedACT(model, normaliser).eval(), samples, work / FP32_FILE)
            parity = _check_forms(work, samples, expected, normaliser, tolerances)
            golden = RawBatch(
                samples.state[:GOLDEN_SAMPLES],
                {name: image[:GOLDEN_SAMPLES] for name, image in samples.images.items()},
            )
            first = ChunkResult(expected.actions[:GOLDEN_SAMPLES], expected.features[:GOLDEN_SAMPLES])
            files: dict[str, Path | bytes] = {
                MODEL_FILE: _weights(model),
                FP32_FILE: work / FP32_FILE,
                INT8_FILE: work / INT8_FILE,
                PROCESSORS_FILE: Processors.of(config).to_bytes(),
                GOLDEN_FILE: pack_golden(golden.state, golden.images, first),
            }
            return write_bundle(out_dir, files, _manifest(model, normaliser, meta, parity), key)
    finally:
        model.to(device).train(training)
        normaliser.to(device)


def _manifest(model: ACT, normaliser: Normaliser, meta: BundleMeta, parity: Parity) -> Manifest:
    config = model.config
    return Manifest(
        **{**meta.model_dump(), "execute": meta.execute or config.execute},
        created=now_label(),
        cameras=config.cameras,
        normalisation=normaliser.stats,
        chunk=config.chunk,
        feature_dim=config.dim,
        parity=parity,
        files=(),
    )


def _weights(model: ACT) -> bytes:
    return safetensors.torch.save({name: value.contiguous() for name, value in model.state_dict().items()})


def _merge(batches: Sequence[RawBatch], cameras: Sequence[str]) -> RawBatch:
    if not batches:
        raise ExportError("no observations to calibrate with; give at least one batch")
    state = np.concatenate([batch.state for batch in batches]).astype(np.float32, copy=False)
    images = {name: np.concatenate([batch.images[name] for batch in batches]) for name in cameras}
    return RawBatch(state, images)


def _feeds(samples: RawBatch, batch: int) -> list[Feed]:
    feeds: list[Feed] = []
    for start in range(0, len(samples.state), batch):
        stop = start + batch
        images = {f"image.{name}": image[start:stop] for name, image in samples.images.items()}
        feeds.append({"state": samples.state[start:stop], **images})
    return feeds


def _torch_chunks(served: ServedACT, samples: RawBatch) -> ChunkResult:
    actions, features = [], []
    with torch.inference_mode():
        for feed in _feeds(samples, 8):
            tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()]
            chunk, pooled = served(*tensors)
            actions.append(chunk.numpy())
            features.append(pooled.numpy())
    return ChunkResult(np.concatenate(actions), np.concatenate(features))


def export_onnx(served: nn.Module, samples: RawBatch, out: Path) -> None:
    """Write the float32 ONNX form of raw observations in, raw actions out; ``samples`` give the shapes."""
    # Three rows, so that the batch is not mistaken for another size of the network while tracing.
    example = {name: np.resize(value, (3, *value.shape[1:])) for name, value in _feeds(samples, 3)[0].items()}
    names = list(example)
    outputs = ["actions", "features"]
    with warnings.catch_warnings():
        # The tracing exporter is the deprecated one; it was 4 to 13 times faster to export than the
        # other, and the models it made were as exact and ran at the same speed.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served,
            tuple(torch.from_numpy(value) for value in example.values()),
            str(out),
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in names + outputs},
            opset_version=OPSET,
            dynamo=False,
        )


def _check_forms(
    work: Path, samples: RawBatch, expected: ChunkResult, normaliser: Normaliser, tolerances: Tolerances
) -> Parity:
    std = np.maximum(normaliser.action_std.numpy(), 1e-6)
    feeds = _feeds(samples, 8)
    fp32_error = float((_errors(work / FP32_FILE, feeds, expected) / std).max())
    if not fp32_error <= tolerances.fp32_max:
        raise ExportError(
            f"ONNX float32 is off torch by {fp32_error:.2g} action standard deviations, "
            f"{tolerances.fp32_max:.2g} allowed; the policy is not published"
        )
    quantiser = Quantiser(work / FP32_FILE, feeds, expected.actions, std)
    int8 = quantise(quantiser, tolerances.int8_mean, work / INT8_FILE)
    if not int8.error <= tolerances.int8_mean:
        raise ExportError(
            f"ONNX int8 is off torch by {int8.error:.2g} action standard deviations on average, "
            f"{tolerances.int8_mean:.2g} allowed; calibrate with more observations"
        )
    served = _served_error(work / INT8_FILE, feeds, expected, std)
    if not served <= tolerances.int8_mean:
        raise ExportError(
            f"ONNX int8 in OpenVINO is off torch by {served:.2g} action standard deviations on average, "
            f"{tolerances.int8_mean:.2g} allowed; the policy is not published"
        )
    return Parity(
        fp32_error=fp32_error,
        fp32_tolerance=tolerances.fp32_max,
        int8_error=max(int8.error, served),
        int8_tolerance=tolerances.int8_mean,
        int8_scheme=int8.scheme,
        samples=len(samples.state),
    )


def _served_error(path: Path, feeds: Sequence[Feed], expected: ChunkResult, std: Floats) -> float:
    """The int8 form's mean error in OpenVINO, in ``std``; 0 where that does not run it here."""
    if OPENVINO in skipped():
        return 0.0
    from policies.openvino_session import Int8Network

    try:
        network = Int8Network(path.read_bytes(), torch.get_num_threads())
        actual = np.concatenate([network.run(feed).actions for feed in feeds])
    except RuntimeError as error:  # whoever serves it here falls back in the same way
        logger.warning("openvino_does_not_run_it reason=%s", str(error).strip().partition("\n")[0])
        return 0.0
    return float((np.abs(actual - expected.actions) / std).mean())


def _errors(path: Path, feeds: Sequence[Feed], expected: ChunkResult) -> Floats:
    """|ONNX − torch| of the actions (N, H, A), in their own unit; infinity where not finite."""
    options = session_options(torch.get_num_threads())
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    actual = np.concatenate([session.run(["actions"], dict(feed))[0] for feed in feeds])
    return np.nan_to_num(np.abs(actual - expected.actions), nan=np.inf, posinf=np.inf)
