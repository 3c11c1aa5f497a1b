"""From a directory to a slot that may serve: verify → fit → load → golden → smoke → warm.

Each bundle does so in an engine process of its own (`policy_server.engine`), behind whatever serves
meanwhile; the thread that calls `load_slot` only waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policies.bundle import Bundle
from policies.errors import PolicyError
from policies.fastest import ENGINE_ERRORS
from policies.keys import TrustStore
from policies.manifest import Manifest
from policy_server.backends import open_session
from policy_server.claim import ordinary
from policy_server.config import Backend, ServerConfig
from policy_server.costs import BatchCosts, measure
from policy_server.engine_process import EngineError, EngineProcess
from policy_server.errors import PathError, RefusedBundleError
from policy_server.process_session import load_session
from policy_server.proving import prove
from policy_server.slots import Slot
from policy_server.spec import CameraSpec, IOSpec

log = logging.getLogger(__name__)

#: Judges, between verifying and loading, whether a bundle could serve at all; raises RefusedBundleError.
FitCheck = Callable[[Manifest, IOSpec, str], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A slot, and how long each step took in milliseconds; ``run_ms`` is the median warm run."""

    slot: Slot
    verify_ms: float
    load_ms: float
    warm_ms: float
    run_ms: float


def allowed_path(path: str, roots: tuple[Path, ...]) -> Path:
    """The bundle directory meant, links resolved. Raises PathError outside the roots."""
    if "\0" in path or not path:
        raise PathError("the bundle path is empty or has a NUL byte; give a directory on this host")
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # too long, or links in a circle
        raise PathError(f"{path[:256]!r} cannot be resolved; give a directory on this host") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        shown = ", ".join(str(root) for root in roots)
        raise PathError(f"{path[:256]!r} is outside the directories bundles may come from ({shown})")
    return resolved


def load_slot(path: Path, backend: Backend, config: ServerConfig, fits: FitCheck) -> Loaded:
    """Make a slot of a bundle directory. Raises RefusedBundleError with a one-line reason.

    The trust store is read afresh each time, so that a key that was removed is no longer trusted.
    """
    if config.priority:
        ordinary()  # this thread, and the engine process that it starts
    load = _in_process if config.isolation == "process" else _in_thread
    try:
        loaded = load(path, backend, config, fits)
    except PolicyError as error:
        raise RefusedBundleError(str(error)) from error
    except ENGINE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise RefusedBundleError(_does_not_run(path, backend, reason)) from error
    version = loaded.slot.version
    if config.max_warm_ms is not None and loaded.run_ms > config.max_warm_ms:
        raise RefusedBundleError(
            f"bundle {version} takes {loaded.run_ms:.1f} ms a chunk on {backend}, "
            f"{config.max_warm_ms:.1f} allowed; use a faster backend or a smaller policy"
        )
    for reason in loaded.slot.passed_over:
        log.warning("loading.passed_over version=%s backend=%s %s", version, backend, reason)
    costs = loaded.slot.costs.describe()
    log.info("loading.ready version=%s backend=%s run_ms=%.1f %s", version, backend, loaded.run_ms, costs)
    return loaded


def _in_process(path: Path, backend: Backend, config: ServerConfig, fits: FitCheck) -> Loaded:
    """In an engine process of its own, which is gone when anything is wrong."""
    begin = time.perf_counter()
    engine = EngineProcess()
    try:
        opened = engine.open(path, config.trust)
        verified = time.perf_counter()
        spec = io_spec(opened.manifest)
        fits(opened.manifest, spec, opened.version)
        try:
            session, said = load_session(engine, opened, backend, config)
        except EngineError as error:
            raise RefusedBundleError(_does_not_run(path, backend, str(error))) from error
    except BaseException:
        engine.close()
        raise
    costs = BatchCosts({int(size): ms for size, ms in said["costs"].items()})
    passed_over = tuple(said["passed_over"])
    slot = Slot(
        opened.version, backend, session, opened.manifest, spec, path, session.pid, costs, passed_over
    )
    verify_ms = (verified - begin) * 1e3
    return Loaded(slot, verify_ms, said["load_ms"], said["warm_ms"], said["run_ms"])


def _in_thread(path: Path, backend: Backend, config: ServerConfig, fits: FitCheck) -> Loaded:
    """In this thread. Not niced: it would hold the interpreter's lock while the serving thread waits."""
    begin = time.perf_counter()
    bundle = Bundle.open(path, TrustStore.load(config.trust))
    verified = time.perf_counter()
    spec = io_spec(bundle.manifest)
    fits(bundle.manifest, spec, bundle.version)
    session = open_session(bundle, backend, config.threads, spinning=False)
    loaded = time.perf_counter()
    run_ms = prove(session, bundle, config.warm_runs)
    costs = measure(session, config.max_batch, config.warm_runs)
    warm = time.perf_counter()
    passed_over = session.passed_over
    slot = Slot(bundle.version, backend, session, bundle.manifest, spec, path, 0, costs, passed_over)
    return Loaded(slot, (verified - begin) * 1e3, (loaded - verified) * 1e3, (warm - loaded) * 1e3, run_ms)


def _does_not_run(path: Path, backend: Backend, reason: str) -> str:
    return f"{path} does not run on {backend}: {reason}; export it again"


def io_spec(manifest: Manifest) -> IOSpec:
    """What a manifest asks of a request."""
    cameras = tuple(CameraSpec(camera.name, camera.height, camera.width) for camera in manifest.cameras)
    return IOSpec(manifest.state_names, manifest.action_names, cameras, manifest.rate_hz, manifest.robot)
