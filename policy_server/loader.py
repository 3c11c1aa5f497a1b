"""One bundle at a time, in a thread: from a path that somebody names to a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from policy_server.backends import check_backend
from policy_server.config import Backend, ServerConfig
from policy_server.errors import RefusedBundleError
from policy_server.loading import FitCheck, Loaded, allowed_path, load_slot
from policy_server.slots import Slot
from policy_server.standing import Place, Standing

Wanted = Callable[[], bool]


class Loader:
    """Loads in the order in which it is asked; owned by the event loop."""

    def __init__(self, config: ServerConfig, fits: FitCheck, standing: Standing) -> None:
        self._config = config
        self._fits = fits
        self._standing = standing
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading = asyncio.Lock()

    async def load(self, path: str, backend: str, wanted: Wanted | None = None) -> Loaded:
        """What is at ``path``. Raises ServerError, also if it is not ``wanted`` when its turn comes."""
        known: Backend = check_backend(backend, self._config.backend)
        directory = allowed_path(path, self._config.roots)
        async with self._loading:
            if wanted is not None and not wanted():
                raise RefusedBundleError(f"{path[:256]} is not needed any more; look at the status")
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._thread, load_slot, directory, known, self._config, self._fits
            )
        if loaded.slot.passed_over:
            reason = "; ".join(loaded.slot.passed_over)
            self._standing.note("slower provider", loaded.slot.version, reason=reason)
        return loaded

    async def again(self, place: Place, wanted: Wanted | None = None) -> Slot:
        """A version that was here before. Raises ServerError, also when another is in its place by now."""
        slot = (await self.load(place.path, place.backend, wanted)).slot
        if slot.version != place.version:
            slot.close()
            raise RefusedBundleError(
                f"{place.path} holds bundle {slot.version} now, not {place.version}; put that back"
            )
        return slot

    def close(self) -> None:
        """Wait for the load in progress, and take no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
