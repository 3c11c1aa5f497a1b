"""An exported form on the fastest engine of this machine that gets it right."""

from __future__ import annotations

import logging

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from policies.bundle import Bundle, Precision
from policies.engine import OPENVINO, Provider, providers
from policies.errors import GoldenMismatchError
from policies.golden import check_golden
from policies.session import OnnxSession, PolicySession

log = logging.getLogger(__name__)

#: ONNX Runtime's errors share no base class; OpenVINO and torch raise RuntimeError.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ImportError,
    MemoryError,
    RuntimeError,
    ValueError,
)
#: After which a slower engine is tried.
_NEXT_ONE: tuple[type[Exception], ...] = (GoldenMismatchError, *ENGINE_ERRORS)


def open_fastest(
    bundle: Bundle, precision: Precision = "fp32", threads: int = 1, spinning: bool = False
) -> PolicySession:
    """On the first engine that starts and reproduces the golden vectors; the last is the caller's to judge.

    The others are named in ``passed_over``, and in the log. ``spinning`` is ONNX Runtime's: see
    `policies.engine.session_options`. Raises PolicyError or one of ENGINE_ERRORS.
    """
    left, passed_over = providers(precision), []
    while len(left) > 1:
        name = left[0][0]
        try:
            session = _open(bundle, precision, threads, spinning, left)
            check_golden(session, bundle)
            if session.providers[0] == name:
                break
            why = "ONNX Runtime does not start it here"
        except _NEXT_ONE as error:
            why = str(error).strip().partition("\n")[0][:160]
        passed_over.append(f"{name}: {why}")
        log.warning("engine.passed_over version=%s engine=%s reason=%s", bundle.version, name, why)
        left = left[1:]
    else:
        session = _open(bundle, precision, threads, spinning, left)
    session.passed_over = tuple(passed_over)
    return session


def _open(
    bundle: Bundle, precision: Precision, threads: int, spinning: bool, left: list[Provider]
) -> PolicySession:
    if left[0][0] == OPENVINO:
        # A fifth of a second to import: for those who run it.
        from policies.openvino_session import OpenVinoSession

        return OpenVinoSession(bundle, threads)
    return OnnxSession(bundle, precision, threads, spinning, left)
