"""Golden vectors: inputs a bundle carries with the chunks its torch form gave for them.

A bundle whose bytes are right may still run wrongly on another machine (a runtime's bug, another
instruction set); this finds it before the arm does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from policies.bundle import Bundle
from policies.errors import GoldenMismatchError, ManifestError
from policies.manifest import GOLDEN_FILE, Manifest
from policies.session import ChunkResult, Floats, Pixels, PolicySession

HEADROOM = 2.0
"""Other machines round differently: golden vectors may be off by this many times the export's tolerance."""


def pack_golden(state: Floats, images: Mapping[str, Pixels], expected: ChunkResult) -> bytes:
    """The bytes of ``golden.safetensors``."""
    tensors: dict[str, np.ndarray] = {
        "state": state,
        "actions": expected.actions,
        "features": expected.features,
        **{f"image.{name}": image for name, image in images.items()},
    }
    return safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in tensors.items()})


def check_golden(session: PolicySession, bundle: Bundle) -> float:
    """Run the golden vectors through ``session``; returns the error in action standard deviations.

    The error is the largest of any value for fp32 and the mean for int8, as in `Parity`. Raises
    GoldenMismatchError when it is beyond the manifest's tolerance times `HEADROOM`.
    """
    manifest = bundle.manifest
    try:
        golden = safetensors.numpy.load(bundle.read(GOLDEN_FILE))
        state, expected = golden["state"], golden["actions"]
        images = {camera.name: golden[f"image.{camera.name}"] for camera in manifest.cameras}
    except (KeyError, safetensors.SafetensorError) as error:
        raise ManifestError(f"{bundle.path / GOLDEN_FILE} lacks {error}; export the bundle again") from error
    distance = action_error(manifest, session.precision, session.infer(state, images).actions, expected)
    tolerance = (
        manifest.parity.fp32_tolerance if session.precision == "fp32" else manifest.parity.int8_tolerance
    )
    if not distance <= HEADROOM * tolerance:
        raise GoldenMismatchError(
            f"bundle {bundle.version} ({session.precision}) is off its golden vectors by {distance:.2g} "
            f"action standard deviations, {HEADROOM * tolerance:.2g} allowed; do not run it on this machine"
        )
    return distance


def action_error(manifest: Manifest, precision: str, actual: Floats, expected: Floats) -> float:
    """Distance of two action chunks (B, H, A) in standard deviations of the action; inf when not finite."""
    std = np.maximum(np.asarray(manifest.normalisation.action.std), 1e-6)
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)) / std
    if error.shape != expected.shape or not np.isfinite(error).all():
        return float("inf")
    return float(error.max() if precision == "fp32" else error.mean())
