"""From a directory to a slot that may serve: verify → fit → load → golden → warm.

Runs in a thread of its own beside the serving one. It isn't niced: a low-priority thread that holds
the interpreter's lock would make the serving thread wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.bundle import Bundle
from policies.errors import PolicyError
from policies.golden import check_golden
from policies.keys import TrustStore
from policies.manifest import Manifest
from policies.session import PolicySession
from policy_server.backends import ENGINE_ERRORS, open_session
from policy_server.config import Backend, ServerConfig
from policy_server.errors import PathError, RefusedBundleError
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
    begin = time.perf_counter()
    try:
        bundle = Bundle.open(path, TrustStore.load(config.trust))
        verified = time.perf_counter()
        spec = io_spec(bundle.manifest)
        fits(bundle.manifest, spec, bundle.version)
        session = open_session(bundle, backend, config.threads)
        loaded = time.perf_counter()
        check_golden(session, bundle)
        run_ms = _warm(session, config.warm_runs)
    except PolicyError as error:
        raise RefusedBundleError(str(error)) from error
    except ENGINE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise RefusedBundleError(f"{path} does not run on {backend}: {reason}; export it again") from error
    warm = time.perf_counter()
    if config.max_warm_ms is not None and run_ms > config.max_warm_ms:
        raise RefusedBundleError(
            f"bundle {bundle.version} takes {run_ms:.1f} ms a chunk on {backend}, "
            f"{config.max_warm_ms:.1f} allowed; use a faster backend or a smaller policy"
        )
    slot = Slot(bundle.version, backend, session, bundle.manifest, spec)
    log.info("loading.ready version=%s backend=%s run_ms=%.1f", bundle.version, backend, run_ms)
    return Loaded(slot, (verified - begin) * 1e3, (loaded - verified) * 1e3, (warm - loaded) * 1e3, run_ms)


def io_spec(manifest: Manifest) -> IOSpec:
    """What a manifest asks of a request."""
    cameras = tuple(CameraSpec(camera.name, camera.height, camera.width) for camera in manifest.cameras)
    return IOSpec(manifest.state_names, manifest.action_names, cameras, manifest.rate_hz, manifest.robot)


def _warm(session: PolicySession, runs: int) -> float:
    """Run on zeros until caches and allocators are warm; returns the median in milliseconds."""
    manifest = session.manifest
    state = np.zeros((1, len(manifest.state_names)), dtype=np.float32)
    images = {c.name: np.zeros((1, c.height, c.width, 3), dtype=np.uint8) for c in manifest.cameras}
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        result = session.infer(state, images)
        times.append((time.perf_counter() - begin) * 1e3)
        if result.actions.shape != (1, manifest.chunk, len(manifest.action_names)):
            raise RefusedBundleError(
                f"bundle {session.version} answers with actions {result.actions.shape}, "
                f"its manifest says chunk {manifest.chunk}; export it again"
            )
    return float(np.median(times))
