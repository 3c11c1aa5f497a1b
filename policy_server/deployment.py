"""The life of what is served: load, swap, probation, back. Owned by the event loop.

`BundleSlots` holds the bundles and one reference to the one that serves; this decides when that
reference changes, keeps on disk what a restarted server has to know, and never puts a version back
that was given up unless a person says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from policy_server.config import ServerConfig
from policy_server.engine_process import wait_for_ended
from policy_server.errors import RefusedBundleError, RollbackError, ServerError, UnknownVersionError
from policy_server.loader import Loader
from policy_server.loading import Loaded
from policy_server.memory import Memory
from policy_server.revival import Reviver
from policy_server.shadow import ShadowDesk
from policy_server.slots import BundleSlots, Serving, Slot
from policy_server.standing import Place, Standing, Trial, read_standing
from policy_server.trial import Judge

log = logging.getLogger(__name__)

_END_S = 2.0
_READY_TRIES = 3


class Deployment:
    """Loads, swaps and gives up bundles. Raises ConfigError when the file with its memory is damaged."""

    def __init__(self, config: ServerConfig, slots: BundleSlots) -> None:
        self._config = config
        self._slots = slots
        self.standing: Standing = read_standing(config.state)
        self.judge = Judge(config.probation, self.standing)
        self.shadows = ShadowDesk(slots, config.shadow_s, config.threads)
        self._loader = Loader(config, slots.check_replacement, self.standing)
        self._reviver = Reviver(slots, self._loader, self.standing, self._save_soon)
        self._memory = Memory(config.state)
        self._unanswered = 0
        self._way_back: Place | None = None  # what served before the last restart, until it is loaded
        self._returning: asyncio.Task[None] | None = None
        self._going_back: asyncio.Task[None] | None = None  # to a version that has to be made ready first
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
                loaded = await self._loader.load(place.path, place.backend)
                self.judge.refuse_barred(loaded.slot.version, f"serve another, or move {config.state} away")
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
        loaded = await self._loader.load(path, backend)
        if activate:  # what is refused is not kept
            self._slots.check_replacement(loaded.slot.manifest, loaded.slot.spec, loaded.slot.version)
            if not by_person:
                self.judge.refuse_barred(loaded.slot.version)
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
        """A person's word: serve the predecessor again, bar the present one. Raises ServerError.

        A predecessor whose engine has ended is loaded again first, behind what serves.
        """
        if self._way_back is not None and self._returning is not None:
            await asyncio.wait([self._returning])
        before, way_back = self._slots.serving, self._slots.previous
        if before is not None and way_back is not None:
            way_back = await self._ready(way_back)
            now = self._slots.serving
            if self._slots.previous is not way_back or now is None or now.slot.version != before.slot.version:
                raise RollbackError("another bundle was put in service meanwhile; look at the status")
        serving = self._give_up(why or "rolled back by hand", by_server=False, to=way_back)
        await self._save()
        return serving

    async def report(self, version: str, episode: str, failed: bool, flags: tuple[str, ...]) -> str:
        """Count how an episode ended and act on it; returns the verdict on a bundle on probation, if any."""
        verdict = self.judge.report(version, episode, failed, flags, mixed=False)
        if verdict == "passed":
            self._slots.pinned.pop("fallback", None)
        reason = self.judge.reason
        rolled_back = verdict == "failed" and self._give_up_trial(reason)
        await self._save()
        if verdict == "failed" and not rolled_back:
            return "" if self._proven() is None else "probation"  # until the way back is ready
        return "rolled back" if rolled_back else verdict

    async def answered(self, serving: Serving, fine: bool) -> None:
        """Note whether a run gave finite actions; several in a row that don't end in a way back."""
        self._unanswered = 0 if fine else self._unanswered + 1
        if self._unanswered < self._config.probation.failed_inferences or serving is not self._slots.serving:
            return
        self._unanswered = 0
        reason = f"{self._config.probation.failed_inferences} requests in a row without an answer"
        if self._give_up_trial(reason):
            self._save_soon()
        elif not serving.slot.alive and self._proven() is None:
            self._reviver.begin(serving.slot)

    def tick(self, seconds: float) -> None:
        """Let time pass on a probation and a shadow; load again whose engine has ended."""
        self.shadows.tick()
        if self.judge.pass_time(seconds):
            self._slots.pinned.pop("fallback", None)
            self._save_soon()
        serving = self._slots.serving
        # While it can be given up, what serves is: that is quicker than a load.
        self._reviver.tick(but=() if serving is None or self._proven() is None else (serving.slot,))

    async def shadow(self, bundle: str, backend: str, seconds: float) -> None:
        """Have a resident version, or a bundle at a path, see what is asked. Raises ServerError."""
        slot = self._slots.find(bundle)
        if slot is None:
            slot = self._keep((await self._loader.load(bundle, backend)).slot)
        elif not slot.alive:
            slot = await self._reviver.again(slot)
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
        self._reviver.close()
        for task in self._tasks:
            task.cancel()
        self._loader.close()
        self._memory.close()
        for slot in self._slots.slots:
            slot.close()
        wait_for_ended(_END_S)

    def _keep(self, slot: Slot) -> Slot:
        """The slot that is resident from here on: the one that was, unless its engine has ended."""
        resident = self._slots.find(slot.version, slot.backend)
        if resident is not None and not resident.alive:
            self._slots.replace(resident, slot)
        return self._slots.add(slot)

    async def _activate(self, slot: Slot, by_person: bool, probation: bool) -> Serving:
        """Switch, in one step of the event loop: nothing comes between the checks and the switch."""
        if not by_person:
            self.judge.refuse_barred(slot.version)
        slot = await self._ready(slot)
        before, standing = self._slots.serving, self.standing
        if before is not None and before.slot is slot:
            return before
        if not by_person:  # now, maybe
            self.judge.refuse_barred(slot.version)
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

    async def _ready(self, slot: Slot) -> Slot:
        """The slot, or one in its place, that could serve at once. Raises ServerError. Serving goes on."""
        for _ in range(_READY_TRIES):
            await self.shadows.release(slot)
            if not slot.alive:
                slot = await self._reviver.again(slot)
            if slot.alive and self.shadows.free(slot):
                return slot
        raise RefusedBundleError(f"the engine of bundle {slot.version} ends again and again; load another")

    def _give_up_trial(self, reason: str) -> bool:
        """Back to the last version that proved itself, at once: requests wait for this.

        False when there is no need or no way, and when that version has to be made ready first.
        """
        fallback, trial = self._proven(), self.standing.trial
        if fallback is None or trial is None:
            return False
        if fallback.alive and self.shadows.free(fallback):
            self._give_up(reason, by_server=True, to=fallback)
            return True
        if self._going_back is None or self._going_back.done():
            self._going_back = self._start(self._go_back(fallback, trial, reason))
        return False

    async def _go_back(self, fallback: Slot, trial: Trial, reason: str) -> None:
        """Make the way back ready behind what serves, then go; if it can't be, have one of them loaded."""
        try:
            fallback = await self._ready(fallback)
        except ServerError as error:
            log.error("deployment.not_rolled_back version=%s reason=%s", trial.version, error)
            serving = self._slots.serving
            if serving is not None and not serving.slot.alive:
                self._reviver.begin(serving.slot)
            return
        if self.standing.trial is trial and self._proven() is fallback:
            self._give_up(reason, by_server=True, to=fallback)
            await self._save()

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
            self.standing.note("no way back", place.version, reason=str(error))
            return
        self._slots.pinned["fallback"] = slot
        self._slots.stand_by(slot)

    async def _return(self, place: Place) -> None:
        """Load what served before the present version again, behind the serving."""
        try:
            slot = await self._load_again(place)
        except ServerError as error:
            if self._way_back is place:
                self.standing.note("no way back", place.version, reason=str(error))
        else:
            serving = self._slots.serving
            if self._way_back is place and serving is not None and serving.slot is not slot:
                self._slots.stand_by(slot)
        self._way_back = None
        await self._save()

    async def _load_again(self, place: Place) -> Slot:
        """A version that served before. Raises ServerError, also when another is in its place by now."""
        self.judge.refuse_barred(place.version)
        return self._keep(await self._loader.again(place))

    async def _save(self) -> None:
        """Put the present state on disk."""
        standing, serving = self.standing, self._slots.serving
        standing.serving = None if serving is None else serving.slot.place
        previous, fallback = self._slots.previous, self._slots.pinned.get("fallback")
        standing.previous = self._way_back if previous is None else previous.place
        standing.fallback = None if fallback is None else fallback.place
        await self._memory.keep(standing)

    def _save_soon(self) -> None:
        self._start(self._save())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
