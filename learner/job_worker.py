"""One training job in a process of its own: ``python -m learner.job_worker FOLDER``.

Reads ``job.json``, writes ``progress.json`` as it goes, and leaves ``bundle/``. A worker that is
started again continues from its checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import logging
import sys
from pathlib import Path
from typing import Any

from episodes.errors import StoreError
from episodes.store import EpisodeStore
from learner.bundles import export, fingerprint
from learner.checkpoint import write_atomic
from learner.config import FinetuneConfig, TrainConfig
from learner.described import describe
from learner.device import lower_priority
from learner.errors import LearnerError
from learner.finetune import finetune
from learner.loading import load_dataset
from learner.train import Progress, TrainResult, train
from policies.bundle import Bundle
from policies.errors import PolicyError
from policies.keys import TrustStore, ensure_key
from policies.torch_session import load_model

log = logging.getLogger(__name__)


def run_job(folder: Path) -> Bundle:
    """Do the job described in ``folder/job.json``. Raises what training raises."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    lower_priority(int(job["nice"]), bool(job["idle"]))
    config = TrainConfig.model_validate_json(job["config"])
    key = ensure_key(Path(job["keys"]))
    out = folder / "bundle"
    trust = TrustStore.load(Path(job["trust"]))
    if out.exists():
        return Bundle.open(out, trust)
    parent = Bundle.open(job["parent"], trust) if job["parent"] else None
    progress = _reporter(folder)
    where = f"({job['where']})" if job["where"] else "true"
    with EpisodeStore.open(job["store"], create=False, mode="r") as store:
        corrections = store.select(f"{where} AND interventions > 0") if parent is not None else []
        chosen = store.select(where)
        base_ids = [name for name in chosen if name not in set(corrections)]
        base = load_dataset(store, base_ids, config.data)
        result: TrainResult
        if parent is None:
            result = train(base, config, folder=folder / "training", progress=progress)
        else:
            corrected = load_dataset(store, corrections, config.data, trim=True) if corrections else None
            tuning = FinetuneConfig(train=config, min_corrections=1, corrections=corrected is not None)
            model, normaliser = load_model(parent)
            result = finetune(
                model,
                normaliser.stats,
                base,
                corrected,
                tuning,
                folder=folder / "training",
                progress=progress,
            )
        data_id = fingerprint(store, chosen)
        # A child drives what its parent drives.
        robot = describe(store, chosen).meta() if parent is None else None
    return export(
        result,
        base,
        out,
        key,
        name=parent.manifest.name if parent else "policy",
        config=config,
        parent=parent,
        dataset_id=data_id,
        details={"kind": "job", "job": folder.name},
        meta=robot,
    )


def _reporter(folder: Path) -> Progress:
    def report(step: int, steps: int, loss: float) -> None:
        # Losing the last report to a crash is harmless: no fsync, but never half a file.
        beside = folder / "progress.json.partial"
        beside.write_text(json.dumps({"step": step, "steps": steps, "loss": loss}))
        beside.replace(folder / "progress.json")

    return report


def main(folder: Path) -> int:
    """Exit status 0 when the bundle is there, 2 with the reason in ``result.json`` when it cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        # A service that was restarted may start a second worker while the first still runs.
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bundle = run_job(folder)
        result, status = {"bundle_version": bundle.version}, 0
    except (LearnerError, PolicyError, StoreError) as error:
        log.error("job.failed reason=%s", error)
        result, status = {"detail": str(error)}, 2
    write_atomic(folder / "result.json", json.dumps(result).encode())
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
