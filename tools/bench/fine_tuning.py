"""The learner at work for as long as it is let: ``python -m tools.bench.fine_tuning``, beside a robot.

The same calls as one round's fine-tuning, in a process that gave way as `ratchet learn` does, on
an episode the robot has just recorded; again and again until it is ended, or its parent is. Each
step becomes a line ``step N of M`` in its log.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from episodes.store import EpisodeStore
from learner.config import DataConfig, FinetuneConfig, LearnerConfig, TrainConfig
from learner.device import lower_priority, one_thread_beside
from learner.finetune import finetune
from learner.loading import load_dataset
from policies.bundle import Bundle
from policies.keys import TrustStore
from policies.torch_session import load_model

log = logging.getLogger(__name__)

BATCH = 8
STEPS = 200
MAX_EPISODES = 1  # of up to 20 s: a gigabyte of pictures


def main() -> None:
    """Fine-tune until ended."""
    parser = argparse.ArgumentParser(description="fine-tune on recorded episodes until ended")
    for name in ("store", "bundle", "trust"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    train = TrainConfig(steps=STEPS, batch=BATCH, lr=1e-4, warmup=10, log_every=1)
    settings = LearnerConfig(
        store=options.store, work=options.store, keys=options.trust, trust=options.trust,
        finetune=FinetuneConfig(train=train, corrections=False),
    )  # fmt: skip
    lower_priority(settings.nice, settings.idle_scheduling)
    one_thread_beside(True, train.threads)
    model, normaliser = load_model(Bundle.open(options.bundle, TrustStore.load(options.trust)))
    with EpisodeStore.open(settings.store, create=False, mode="r") as store:
        chosen = sorted(store.select(settings.base_where))[:MAX_EPISODES]
        data = load_dataset(store, chosen, DataConfig(gaps="split", decode_threads=1))
    parent = os.getppid()

    def report(step: int, steps: int, loss: float) -> None:
        log.info("step %d of %d loss %.4f", step, steps, loss)
        if os.getppid() != parent:
            raise SystemExit(0)

    log.info("fine_tuning.begin steps=%d", len(data))
    while True:
        finetune(
            model,
            normaliser.stats,
            data,
            None,
            settings.finetune,
            progress=report,
        )


if __name__ == "__main__":
    main()
