"""The engines a bundle can run on, and what they raise when they cannot."""

from __future__ import annotations

from policies.bundle import Bundle
from policies.errors import PolicyError
from policies.fastest import ENGINE_ERRORS, open_fastest
from policies.session import PolicySession
from policy_server.config import BACKENDS, Backend
from policy_server.errors import RefusedBundleError

#: Anything that makes a session fail to answer.
FAILURES: tuple[type[Exception], ...] = (PolicyError, *ENGINE_ERRORS)


def check_backend(backend: str, default: Backend) -> Backend:
    """The backend meant; "" is the default. Raises RefusedBundleError for an unknown one."""
    for known in BACKENDS:
        if known == (backend or default):
            return known
    raise RefusedBundleError(f"backend {backend[:64]!r} is unknown; use one of {', '.join(BACKENDS)}")


def open_session(bundle: Bundle, backend: Backend, threads: int, spinning: bool) -> PolicySession:
    """A session on a verified bundle; ``spinning``: as `policies.engine.session_options` says.

    Raises PolicyError or one of ENGINE_ERRORS.
    """
    if backend == "onnx":
        return open_fastest(bundle, "fp32", threads, spinning)
    if backend == "onnx-int8":
        return open_fastest(bundle, "int8", threads, spinning)
    # torch is large and slow to import: only the servers that use it pay for it.
    from policies.torch_session import TorchSession

    return TorchSession(bundle, compile=backend == "compile")
