"""What the exported forms run on: engines in order of preference, threads, spinning."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any, Literal

import onnxruntime as ort

Provider = tuple[str, dict[str, Any]]

PREFERRED = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
"""ONNX Runtime's providers, from fastest to the one that is always there."""

OPENVINO = "OpenVINO"
"""Not one of them, but an engine of its own, named in the same places."""

# TF32 keeps 10 bits of a float32's 23 and would not pass the golden vectors of the float32 form.
_OPTIONS: dict[str, dict[str, Any]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
_X86 = ("x86_64", "AMD64")


def providers(precision: Literal["fp32", "int8"]) -> list[Provider]:
    """What a form runs on here, fastest first: float32 on a GPU where there is one, int8 on the processor.

    The int8 form is made for the integer instructions of processors; a GPU is faster with the other.
    """
    if precision == "int8":
        here = OPENVINO not in skipped()
        return [(name, {}) for name in ([OPENVINO] if here else []) + ["CPUExecutionProvider"]]
    offered = ort.get_available_providers()
    return [(name, _OPTIONS.get(name, {})) for name in PREFERRED if name in offered]


def skipped() -> dict[str, str]:
    """The preferred ones that this machine does not have, each with why."""
    why = f"onnxruntime {ort.__version__} is built without it; on a CUDA machine install onnxruntime-gpu"
    missing = {name: why for name in PREFERRED if name not in ort.get_available_providers()}
    if platform.machine() not in _X86:
        missing[OPENVINO] = f"not used on {platform.machine()} processors; ONNX Runtime runs int8"
    elif importlib.util.find_spec("openvino") is None:
        missing[OPENVINO] = "the package openvino is not installed; pip install openvino"
    return missing


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
