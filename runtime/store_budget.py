"""Keeping the episode store within its budget while the robot runs, beside everything else."""

from __future__ import annotations

import asyncio
import logging
import shutil

from episodes.errors import StoreError
from episodes.retention import prune
from episodes.store import EpisodeStore
from runtime.recorder import EpisodeRecorder

log = logging.getLogger(__name__)

PERIOD_S = 60.0
LEFT_S = 5.0
_LOOK_S = 2.0


async def watch_disk(store: EpisodeStore, recorder: EpisodeRecorder) -> None:
    """Tell the recorder now and then how much of the disk is free. A disk that hangs holds up only this."""
    while True:
        try:
            recorder.disk_free = (await asyncio.to_thread(shutil.disk_usage, store.root)).free
        except OSError as error:
            log.warning("store.disk error=%s", error)
            recorder.disk_free = None
        await asyncio.sleep(_LOOK_S)


async def publish_left(store: EpisodeStore, period_s: float = LEFT_S) -> None:
    """Every ``period_s``, publish an episode that a full disk held up, once there is room for it again.

    Runs until cancelled, in a thread of its own pace; trouble is logged and tried again.
    """
    while True:
        await asyncio.sleep(period_s)
        try:
            await asyncio.to_thread(store.publish_left)
        except StoreError as error:
            log.error("store.left error=%s", error)


async def keep_budget(store: EpisodeStore, budget_bytes: int, period_s: float = PERIOD_S) -> None:
    """Every ``period_s``, delete what the budget asks for and retention allows; say what it cannot.

    Runs until cancelled; trouble with the disk is logged and tried again.
    """
    said = 0
    while True:
        try:
            result = await asyncio.to_thread(prune, store, budget_bytes)
        except StoreError as error:
            log.error("store.budget error=%s", error)
        else:
            if result.deleted:
                log.info(
                    "store.pruned episodes=%d bytes=%d", len(result.deleted), result.before - result.after
                )
            if result.over and result.over != said:
                log.warning(
                    "the store is %.2f GB over its budget; what is left is flagged, not synced "
                    "(`ratchet episodes sync` it), or lies in damaged/ and incoming/",
                    result.over / 1e9,
                )
            said = result.over
        await asyncio.sleep(period_s)
