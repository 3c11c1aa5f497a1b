"""The learner as a service: wait for corrections, run a round, again. Politely.

Nothing that moves waits for it: it may crash, hang or be stopped at any point, and continues the
interrupted round when it is started again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from episodes.errors import StoreError
from episodes.store import EpisodeStore
from learner.config import LearnerConfig
from learner.device import lower_priority, one_thread_beside
from learner.errors import LearnerError
from learner.process import RoundReport, StageProgress, pending, run_round
from learner.promotion import Promotion
from learner.serving import followed
from learner.tracking import Tracker
from policies.errors import PolicyError

log = logging.getLogger(__name__)

_BACK_OFF_S = 60.0


def serve(
    config: LearnerConfig,
    stop: threading.Event,
    *,
    status: Callable[[str], None] = lambda _: None,
    progress: StageProgress | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    rounds: int | None = None,
) -> int:
    """Run until ``stop`` is set, or ``rounds`` rounds are done. Returns how many were.

    ``status`` gets one line whenever something begins. A round that fails is logged and tried
    again later; only a damaged ledger or missing keys end the service (LearnerError, PolicyError).
    """
    lower_priority(config.nice, config.idle_scheduling)
    one_thread_beside(config.policy_server is not None, config.finetune.train.threads)
    tracker = Tracker(config.work / "tracking", config.name)
    server = followed(config)
    promotion = Promotion(config, server=server, tracker=tracker)
    done = 0
    try:
        while not stop.is_set() and (rounds is None or done < rounds):
            pause = config.poll_s
            try:
                promotion.reconcile()
                waiting = _waiting(config)
                if _interrupted(config.work) or waiting >= config.min_new_interventions:
                    status(f"learning from {waiting} new corrected episodes")
                    report = run_round(config, promotion, progress=progress)
                    done += 1
                    status(f"round {report.number}: {report.verdict}")
                    if on_round is not None:
                        on_round(report)
                    continue
                status(f"waiting: {waiting} of {config.min_new_interventions} corrected episodes")
            except (LearnerError, StoreError, PolicyError) as error:
                log.error("learner.round_failed reason=%s", error)
                status(f"failed: {error}")
                pause = max(pause, _BACK_OFF_S)
            stop.wait(pause)
    finally:
        if server is not None:
            server.close()
        promotion.ledger.close()
    return done


def _waiting(config: LearnerConfig) -> int:
    with EpisodeStore.open(config.store, create=False, mode="r") as store:
        return pending(config, store)


def _interrupted(work: Path) -> bool:
    """Whether a round has chosen its episodes but not reported."""
    chosen = (p.parent for p in (work / "rounds").glob("*/selection.json"))
    return any(not (folder / "report.json").exists() for folder in chosen)
