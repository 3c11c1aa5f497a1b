"""From a training result to a signed bundle, and from a bundle back to what training continues from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learner.config import TrainConfig
from learner.data import Dataset
from learner.loading import ReadableStore
from learner.train import TrainResult
from policies.bundle import Bundle
from policies.export import RawBatch, export_bundle
from policies.keys import KeyPair
from policies.manifest import BundleMeta

_CALIBRATION_SAMPLES = 64


def fingerprint(store: ReadableStore, episodes: Sequence[str]) -> str:
    """Content id of a data set: SHA-256 over the digests of its episodes, in any order."""
    digests = sorted(store.read(name).digest for name in episodes)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def calibration_batch(dataset: Dataset, samples: int = _CALIBRATION_SAMPLES) -> RawBatch:
    """Observations spread evenly over the data set, as export needs them for int8 and parity."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, samples).round().astype(np.int64))
    return RawBatch(
        dataset.state.numpy()[rows], {name: dataset.picture(name, rows).numpy() for name in dataset.sizes}
    )


def export(
    result: TrainResult,
    dataset: Dataset,
    out: Path,
    key: KeyPair,
    *,
    name: str,
    config: TrainConfig,
    parent: Bundle | None = None,
    dataset_id: str | None = None,
    details: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
) -> Bundle:
    """Publish the averaged weights of ``result`` as a bundle at ``out``.

    ``details`` join the training section of the manifest; ``meta`` sets further fields of
    ``BundleMeta`` (robot, state_names, action_names, rate_hz, …), which a parent otherwise hands
    down. Raises policies.errors.ExportError when its forms disagree.
    """
    inherited: dict[str, Any] = {}
    if parent is not None:
        old = parent.manifest
        inherited = {
            "robot": old.robot,
            "state_names": old.state_names,
            "action_names": old.action_names,
            "rate_hz": old.rate_hz,
            "action_convention": old.action_convention,
            "execute": old.execute,
            "version_number": old.version_number + 1,
            "parent": parent.content_id,
        }
    training: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "final_loss": result.losses[-1][1] if result.losses else None,
        "samples": len(dataset),
        "episodes": len(set(dataset.episodes)),
        **(details or {}),
    }
    described = BundleMeta.model_validate(
        {"name": name, "training": training, "dataset": dataset_id, **inherited, **(meta or {})}
    )
    return export_bundle(result.model, result.normaliser, out, key, described, [calibration_batch(dataset)])
