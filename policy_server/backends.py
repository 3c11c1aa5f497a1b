"""The engines a bundle can run on, and what they raise when they cannot."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from policies.bundle import Bundle, Precision
from policies.engine import providers
from policies.errors import GoldenMismatchError, PolicyError
from policies.golden import check_golden
from policies.session import OnnxSession, PolicySession
from policy_server.config import BACKENDS, Backend
from policy_server.errors import RefusedBundleError

#: ONNX Runtime's errors share no base class; torch raises RuntimeError.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)
#: Anything that makes a session fail to answer.
FAILURES: tuple[type[Exception], ...] = (PolicyError, *ENGINE_ERRORS)
#: After which a slower provider is tried.
_NEXT_ONE: tuple[type[Exception], ...] = (GoldenMismatchError, *ENGINE_ERRORS)


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
        return _on_the_fastest_right(bundle, "fp32", threads, spinning)
    if backend == "onnx-int8":
        return _on_the_fastest_right(bundle, "int8", threads, spinning)
    # torch is large and slow to import: only the servers that use it pay for it.
    from policies.torch_session import TorchSession

    return TorchSession(bundle, compile=backend == "compile")


def _on_the_fastest_right(bundle: Bundle, precision: Precision, threads: int, spinning: bool) -> OnnxSession:
    """On the first provider that starts and reproduces the golden vectors; the last is the caller's to judge.

    The others are named in ``passed_over``.
    """
    left, passed_over = providers(precision), []
    while len(left) > 1:
        name = left[0][0]
        try:
            session = OnnxSession(bundle, precision, threads, spinning, left)
            check_golden(session, bundle)
            if session.providers[0] == name:
                break
            why = "ONNX Runtime does not start it here"
        except _NEXT_ONE as error:
            why = str(error).strip().partition("\n")[0][:160]
        passed_over.append(f"{name}: {why}")
        left = left[1:]
    else:
        session = OnnxSession(bundle, precision, threads, spinning, left)
    session.passed_over = tuple(passed_over)
    return session
