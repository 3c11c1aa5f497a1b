"""Both forms of one simulated policy on the same seeds, through the real control path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from episodes.store import EpisodeStore
from learner.bundles import calibration_batch
from learner.intervals import paired_difference, wilson
from learner.loading import load_dataset
from policies.bundle import Bundle
from policies.export import export_bundle
from policies.keys import KeyPair, TrustStore, write_public
from policies.manifest import BundleMeta
from policies.torch_session import load_model
from tools.console import say
from tools.lockstep import rollouts
from tools.offline import data_config
from tools.paths import trust_dir

_CALIBRATED_WITH = 20
"""Episodes; 64 observations are taken from them."""


def closed_loop(
    bundle: Path,
    store: Path,
    trust: Path | None,
    scratch: Path,
    seeds: list[int],
    workers: int,
    margin: float,
) -> dict[str, Any]:
    """Export the weights of ``bundle`` anew, calibrated on ``store``; roll both forms out on ``seeds``."""
    opened = Bundle.open(bundle, TrustStore.load(trust_dir(trust)))
    own, keys = scratch / "anew", scratch / "anew-keys"
    anew = requantise(opened, store, own, keys)
    won: dict[str, list[bool]] = {}
    for form, backend in (("fp32", "onnx"), ("int8", "onnx-int8")):
        say(f"{len(seeds)} rollouts with {form}")
        outcome = rollouts(own, keys, seeds, "full", workers, backend=backend)
        rows = sorted(outcome.episodes, key=lambda row: int(row["seed"]))
        won[form] = [bool(row["success"]) for row in rows]
    difference, interval = paired_difference(won["int8"], won["fp32"])
    pairs = list(zip(won["int8"], won["fp32"], strict=True))
    return {
        "episodes": len(seeds),
        "success": {form: sum(rows) / len(rows) for form, rows in won.items()},
        "intervals": {
            form: [round(x, 4) for x in wilson(sum(rows), len(rows))] for form, rows in won.items()
        },
        "int8_minus_fp32": round(difference, 4),
        "interval": [round(x, 4) for x in interval],
        "pairs_won": sum(a and not b for a, b in pairs),
        "pairs_lost": sum(b and not a for a, b in pairs),
        "int8_scheme": anew.manifest.parity.int8_scheme,
        "budget": f"lower end above -{margin}",
        "held": interval[0] > -margin,
    }


def requantise(bundle: Bundle, store: Path, out: Path, keys: Path) -> Bundle:
    """The same weights as a bundle at ``out`` of today's export, signed by a key made for it."""
    model, normaliser = load_model(bundle)
    with EpisodeStore.open(store, create=False, mode="r") as episodes:
        chosen = sorted(episodes.select("true"))
        chosen = chosen[:: max(1, len(chosen) // _CALIBRATED_WITH)]
        batch = calibration_batch(load_dataset(episodes, chosen, data_config(bundle.manifest)))
    key = KeyPair.generate()
    write_public(key.public, keys)
    kept = bundle.manifest.model_dump(include=set(BundleMeta.model_fields))
    return export_bundle(model, normaliser, out, key, BundleMeta.model_validate(kept), [batch])
