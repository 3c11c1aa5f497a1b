"""Proof that a loaded session may serve: golden vectors, then observations as a robot might send them."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from policies.bundle import Bundle
from policies.errors import BundleError
from policies.golden import check_golden
from policies.manifest import Manifest
from policies.session import Floats, Pixels, PolicySession

_SPREAD = 3.0  # joints are tried this many standard deviations around their mean


def prove(session: PolicySession, bundle: Bundle, runs: int) -> float:
    """Check golden vectors, then at least ``runs`` made-up observations; returns the median run in ms.

    The runs also warm caches and allocators. Raises GoldenMismatchError, or BundleError when an answer
    has the wrong shape or is not finite.
    """
    check_golden(session, bundle)
    manifest = bundle.manifest
    times = []
    pictures = _pictures(manifest)
    for i in range(max(runs, len(pictures))):
        state, images = _state(manifest, i), pictures[i % len(pictures)]
        begin = time.perf_counter()
        result = session.infer(state, images)
        times.append((time.perf_counter() - begin) * 1e3)
        _check(bundle, "actions", result.actions, (1, manifest.chunk, len(manifest.action_names)))
        _check(bundle, "features", result.features, (1, manifest.feature_dim))
    return float(np.median(times))


def _check(bundle: Bundle, what: str, found: npt.NDArray[np.float32], wanted: tuple[int, ...]) -> None:
    if found.shape != wanted or found.dtype != np.float32:
        raise BundleError(
            f"bundle {bundle.version} answers with {what} {found.dtype} {found.shape}, "
            f"its manifest says float32 {wanted}; export it again"
        )
    if not np.isfinite(found).all():
        raise BundleError(
            f"bundle {bundle.version} answers with a NaN or an infinity in its {what}; do not serve it"
        )


def _state(manifest: Manifest, i: int) -> Floats:
    """Joints around where the training data had them: the mean first, then within three deviations."""
    stats = manifest.normalisation.state
    spread = np.random.default_rng(i).uniform(-_SPREAD, _SPREAD, len(stats.mean)) if i else 0.0
    return (np.asarray(stats.mean) + spread * np.asarray(stats.std)).astype(np.float32)[None]


def _pictures(manifest: Manifest) -> list[dict[str, Pixels]]:
    """A table in daylight, in the dark, noise, a covered lens, a blinded sensor, one camera of two gone."""
    kinds = (_scene, _dark, _noise, _black, _white)
    sets = [{c.name: kind(c.height, c.width)[None] for c in manifest.cameras} for kind in kinds]
    mixed = {
        c.name: kinds[(3 * i) % len(kinds)](c.height, c.width)[None] for i, c in enumerate(manifest.cameras)
    }
    return [*sets, mixed]


def _scene(height: int, width: int) -> Pixels:
    """Smooth light, a darker disc and sensor noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 90 + 100 * y / height + 30 * np.sin(6.0 * x / width)
    disc = (x - 0.6 * width) ** 2 + (y - 0.5 * height) ** 2 < (0.15 * min(height, width)) ** 2
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    tint = np.array([1.0, 0.9, 0.8])
    picture = np.where(disc, 0.4 * light, light)[..., None] * tint + noise
    return np.clip(picture, 0, 255).astype(np.uint8)


def _dark(height: int, width: int) -> Pixels:
    return _scene(height, width) // 12


def _noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _black(height: int, width: int) -> Pixels:
    return np.zeros((height, width, 3), dtype=np.uint8)


def _white(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 255, dtype=np.uint8)
