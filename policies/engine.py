"""How ONNX Runtime is set up: providers in order of preference, threads, spinning."""

from __future__ import annotations

from typing import Any, Literal

import onnxruntime as ort

Provider = tuple[str, dict[str, Any]]

PREFERRED = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
"""From fastest to the one that is always there."""

# TF32 keeps 10 bits of a float32's 23 and would not pass the golden vectors of the float32 form.
_OPTIONS: dict[str, dict[str, Any]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}


def providers(precision: Literal["fp32", "int8"]) -> list[Provider]:
    """What a form runs on here: the float32 form on a GPU where ONNX Runtime has one, int8 on the processor.

    The int8 form is made for the integer instructions of processors; a GPU is faster with the other.
    """
    offered = ort.get_available_providers() if precision == "fp32" else ["CPUExecutionProvider"]
    return [(name, _OPTIONS.get(name, {})) for name in PREFERRED if name in offered]


def skipped() -> dict[str, str]:
    """The preferred providers that this machine does not have, each with why."""
    why = f"onnxruntime {ort.__version__} is built without it; on a CUDA machine install onnxruntime-gpu"
    return {name: why for name in PREFERRED if name not in ort.get_available_providers()}


def session_options(threads: int, spinning: bool = False) -> ort.SessionOptions:
    """Sequential execution on ``threads`` threads of its own.

    ``spinning`` lets threads burn their core while they wait for each other within a run: a little faster
    alone, but it takes the core from whatever else runs there.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Smaller and smaller pieces of work, so that a thread whose core is taken away is not waited for.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return options
