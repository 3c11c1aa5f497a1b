"""The life of what is served: load, swap, probation, back. Owned by the event loop.

`BundleSlots` holds the bundles and one reference to the one that serves; this decides when that
reference changes, keeps on disk what a restarted server has to know, and never puts a version back
that was given up unless a person says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from policy_server.backends import check_backend
from policy_server.config import Backend, ServerConfig
from policy_server.engine_process import wait_for_ended
from policy_server.errors import RefusedBundleError, RollbackError, ServerError, UnknownVersionError
from policy_server.loading import Loaded, allowed_path, load_slot
from policy_server.shadow import ShadowDesk
from policy_server.slots import BundleSlots, Serving, Slot
from policy_server.standing import Place, Standing, read_standing, write_standing
from policy_server.trial import Judge

log = logging.getLogger(__name__)

_REVIVE_PAUSE_S = 1.0
_END_S = 2.0


class Deployment:
    """Loads, swaps and gives up bundles. Raises ConfigError when the file with its memory is damaged."""

    def __init__(self, config: ServerConfig, slots: BundleSlots) -> None:
        self._config = config
        self._slots = slots
        self.standing: Standing = read_standing(config.state)
        self.judge = Judge(config.probation, self.standing)
        self.shadows = ShadowDesk(slots, config.shadow_s, config.threads)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="standing")
        self._loading = asyncio.Lock()
        self._unanswered = 0
        self._way_back: Place | None = None  # what served before the last restart, until it is loaded
        self._returning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve what served when the server stopped, or the configured bundle when that is another now.

        Raises RefusedBundleError when neither is fit to serve.
        """
        config, standing = self._config, self.standing
        configured = None if config.bundle is None else str(config.bundle.resolve())
        first = None if configured is None else Place(version="", path=configured, backend=config.backend)
        places = [standing.serving, first] if config.resume and configured == standing.configured else [first]
        refusals: list[tuple[str, ServerError]] = []
        for place in [place for place in places if place is not None]:
            try:
                loaded = await self._load(place.path, place.backend)
                self._refuse_barred(loaded.slot.version, f"serve another, or move {config.state} away")
            except ServerError as error:
                refusals.append((place.path, error))
                continue
            for path, reason in refusals:
                log.warning("deployment.passed_over path=%s reason=%s", path, reason)
            self._slots.activate(self._slots.add(loaded.slot))
            standing.configured = configured
            await self._resume(loaded.slot.version)
            await self._save()
            if self._way_back is not None:  # nobody waits for it
                self._returning = self._start(self._return(self._way_back))
            return
        if refusals:
            raise refusals[0][1]

    async def load(
        self, path: str, backend: str, activate: bool, *, by_person: bool = False, probation: bool = True
    ) -> tuple[Loaded, Serving | None]:
        """Load a bundle beside the serving one; raises ServerError and leaves that one serving."""
        loaded = await self._load(path, backend)
        if activate:  # what is refused is not kept
            self._slots.check_replacement(loaded.slot.manifest, loaded.slot.spec, loaded.slot.version)
            if not by_person:
                self._refuse_barred(loaded.slot.version)
        slot = self._keep(loaded.slot)
        return loaded, await self._activate(slot, by_person, probation) if activate else None

    async def swap(self, version: str, *, by_person: bool = False, probation: bool = True) -> Serving:
        """Serve a resident version from the next request on. Raises ServerError."""
        slot = self._slots.find(version)
        if slot is None:
            resident = ", ".join(s.version for s in self._slots.slots) or "nothing"
            raise UnknownVersionError(f"bundle {version[:64]!r} is not loaded ({resident} is); load it first")
        return await self._activate(slot, by_person, probation)

    async def roll_back(self, why: str) -> Serving:
        """A person's word: serve the predecessor again, bar the present one. Raises RollbackError."""
        if self._way_back is not None and self._returning is not None:
            await asyncio.wait([self._returning])
        way_back = self._slots.previous
        if way_back is not None:
            await self.shadows.release(way_back)
        serving = self._give_up(why or "rolled back by hand", by_server=False, to=None)
        await self._save()
        return serving

    async def report(self, version: str, episode: str, failed: bool, flags: tuple[str, ...]) -> str:
        """Count how an episode ended and act on it; returns the verdict on a bundle on probation, if any."""
        verdict = self.judge.report(version, episode, failed, flags, mixed=False)
        if verdict == "passed":
            self._slots.pinned.pop("fallback", None)
        reason = self.judge.reason
        rolled_back = verdict == "failed" and await self._give_up_trial(reason)
        await self._save()
        if verdict == "failed":
            return "rolled back" if rolled_back else ""
        return verdict

    async def answered(self, serving: Serving, fine: bool) -> None:
        """Note whether a run gave finite actions; several in a row that don't end in a way back."""
        self._unanswered = 0 if fine else self._unanswered + 1
        if self._unanswered < self._config.probation.failed_inferences or serving is not self._slots.serving:
            return
        self._unanswered = 0
        reason = f"{self._config.probation.failed_inferences} requests in a row without an answer"
        if await self._give_up_trial(reason):
            self._start(self._save())
        elif not serving.slot.alive:
            self._start(self._revive(serving.slot))

    def tick(self, seconds: float) -> None:
        """Let time pass on a probation and a shadow."""
        self.shadows.tick()
        if self.judge.pass_time(seconds):
            self._slots.pinned.pop("fallback", None)
            self._start(self._save())

    async def shadow(self, bundle: str, backend: str, seconds: float) -> None:
        """Have a resident version, or a bundle at a path, see what is asked. Raises ServerError."""
        slot = self._slots.find(bundle)
        if slot is None:
            slot = self._keep((await self._load(bundle, backend)).slot)
        await self.shadows.begin(slot, seconds)

    def knows(self, version: str) -> bool:
        """Whether reports about a version mean anything here."""
        return self._slots.find(version) is not None or version in self.standing.records

    @property
    def restoring(self) -> bool:
        """Whether what served before a restart is still being loaded again."""
        return self._way_back is not None

    @property
    def of_episodes(self) -> int:
        """How long a probation is."""
        return self._config.probation.episodes

    def close(self) -> None:
        """Stop the threads; a load in progress is waited for."""
        self.shadows.close()
        for task in self._tasks:
            task.cancel()
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        for slot in self._slots.slots:
            slot.close()
        wait_for_ended(_END_S)

    async def _load(self, path: str, backend: str) -> Loaded:
        known: Backend = check_backend(backend, self._config.backend)
        directory = allowed_path(path, self._config.roots)
        async with self._loading:
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._loader, load_slot, directory, known, self._config, self._slots.check_replacement
            )
        if loaded.slot.passed_over:
            reason = "; ".join(loaded.slot.passed_over)
            self.standing.note("slower provider", loaded.slot.version, reason=reason)
        return loaded

    def _keep(self, slot: Slot) -> Slot:
        """The slot that is resident from here on: the one that was, unless its engine has ended."""
        resident = self._slots.find(slot.version, slot.backend)
        if resident is not None and not resident.alive:
            self._slots.replace(resident, slot)
        return self._slots.add(slot)

    async def _activate(self, slot: Slot, by_person: bool, probation: bool) -> Serving:
        """Switch, in one step of the event loop: nothing comes between the checks and the switch."""
        await self.shadows.release(slot)
        before, standing = self._slots.serving, self.standing
        if before is not None and before.slot is slot:
            return before
        if not slot.alive:
            raise RefusedBundleError(f"the engine of bundle {slot.version} has ended; load it again")
        if not by_person:
            self._refuse_barred(slot.version)
        serving = self._slots.activate(slot)
        self._way_back = None
        if standing.barred.pop(slot.version, None) is not None:
            standing.note("bar lifted", slot.version, reason="a person put it back")
        self._unanswered = 0
        reason = self._watch(slot, before, probation)
        standing.note("swapped", slot.version, before.slot.version if before else "", reason)
        await self._save()
        return serving

    def _watch(self, slot: Slot, before: Serving | None, probation: bool) -> str:
        """Begin or end the probation that a swap asks for; returns what is to be said about it."""
        trial, pinned = self.standing.trial, self._slots.pinned
        # A version that was itself on probation has proved nothing: the one before it has.
        proven = pinned.get("fallback") if trial else None
        if trial is not None and trial.version == slot.version and probation:
            return "on another backend, still on probation"
        proven = proven or (before.slot if before else None)
        if proven is not None and proven.version != slot.version:
            self._slots.stand_by(proven)  # also what a person goes back to
        # No version is its own way back: it would be barred and serve.
        if proven is None or not probation or proven.version == slot.version:
            self.judge.end()
            pinned.pop("fallback", None)
            return "" if trial is None else f"bundle {trial.version} was on probation and is replaced"
        pinned["fallback"] = proven
        self.judge.begin(slot.version, proven.version)
        return ""

    def _proven(self) -> Slot | None:
        """The last version that proved itself; None when no trial of what serves is on, or none is left."""
        trial, serving = self.standing.trial, self._slots.serving
        if trial is None or serving is None or serving.slot.version != trial.version:
            return None
        return self._slots.pinned.get("fallback")

    async def _give_up_trial(self, reason: str) -> bool:
        """Back to the last version that proved itself; False when there is no need or no way."""
        fallback = self._proven()
        if fallback is None:
            return False
        await self.shadows.release(fallback)
        if self._proven() is not fallback:  # somebody was quicker
            return False
        self._give_up(reason, by_server=True, to=fallback)
        return True

    def _give_up(self, why: str, *, by_server: bool, to: Slot | None) -> Serving:
        before = self._slots.serving
        if before is None:
            raise RollbackError("no bundle is loaded; load one")
        serving = self._slots.rollback(to)
        self._way_back = None
        version = before.slot.version
        self.judge.end()
        if serving.slot.version != version:  # the same on another backend is not barred: it serves
            self.judge.bar(version, why, by_server)
        self._slots.pinned.pop("fallback", None)
        self._unanswered = 0
        self.standing.note("rolled back", version, serving.slot.version, why)
        log.warning("deployment.rolled_back version=%s to=%s reason=%s", version, serving.slot.version, why)
        return serving

    def _refuse_barred(self, version: str, remedy: str = "only a person puts it back") -> None:
        bar = self.standing.barred.get(version)
        if bar is not None:
            raise RefusedBundleError(
                f"bundle {version} was rolled back on {bar.wall} ({bar.reason}); {remedy}"
            )

    async def _resume(self, version: str) -> None:
        """After a restart: the way back of a probation has to be there at once, any other comes later."""
        standing = self.standing
        trial, place, served = standing.trial, standing.fallback, standing.serving
        if trial is None or trial.version != version or place is None:
            self.judge.end()
            self._way_back = standing.previous if served is not None and served.version == version else None
            return
        try:
            slot = await self._load_again(place)
        except ServerError as error:
            self.judge.end()
            self._no_way_back(place, error)
            return
        self._slots.pinned["fallback"] = slot
        self._slots.stand_by(slot)

    async def _return(self, place: Place) -> None:
        """Load what served before the present version again, behind the serving."""
        try:
            slot = await self._load_again(place)
        except ServerError as error:
            if self._way_back is place:
                self._no_way_back(place, error)
        else:
            serving = self._slots.serving
            if self._way_back is place and serving is not None and serving.slot is not slot:
                self._slots.stand_by(slot)
        self._way_back = None
        await self._save()

    async def _load_again(self, place: Place) -> Slot:
        """A version that served before. Raises ServerError, also when another is in its place by now."""
        self._refuse_barred(place.version)
        loaded = await self._load(place.path, place.backend)
        if loaded.slot.version != place.version:
            raise RefusedBundleError(f"{place.path} holds bundle {loaded.slot.version} now")
        return self._slots.add(loaded.slot)

    def _no_way_back(self, place: Place, error: ServerError) -> None:
        log.warning("deployment.no_way_back version=%s reason=%s", place.version, error)
        self.standing.note("no way back", place.version, reason=str(error))

    async def _revive(self, dead: Slot) -> None:
        """Load a bundle again whose engine process has ended while it served, with nothing to go back to."""
        while (serving := self._slots.serving) is not None and serving.slot is dead:
            try:
                loaded = await self._load(str(dead.path), dead.backend)
            except ServerError as error:
                log.error("deployment.not_revived version=%s reason=%s", dead.version, error)
                await asyncio.sleep(_REVIVE_PAUSE_S)
                continue
            self._slots.replace(dead, loaded.slot)
            self.standing.note("revived", dead.version, reason="its engine process had ended")
            await self._save()

    async def _save(self) -> None:
        """Put the present state on disk; the disk's trouble does not stop the serving."""
        path, standing = self._config.state, self.standing
        serving = self._slots.serving
        standing.serving = None if serving is None else serving.slot.place
        previous, fallback = self._slots.previous, self._slots.pinned.get("fallback")
        standing.previous = self._way_back if previous is None else previous.place
        standing.fallback = None if fallback is None else fallback.place
        if path is None:
            return
        begin, text = time.perf_counter(), standing.model_dump_json()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write_standing, path, text)
        except OSError as error:
            log.error("deployment.not_saved path=%s reason=%s", path, error)
        log.debug("deployment.saved ms=%.1f", (time.perf_counter() - begin) * 1e3)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
