"""A bundle's int8 form under OpenVINO, whose integer kernels on x86 are a quarter faster than ONNX Runtime's.

Measured by `ratchet bench inference` on two cores with AVX-512 VNNI; see docs/inference.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino

from policies.bundle import Bundle
from policies.engine import OPENVINO
from policies.session import ChunkResult, Floats, Pixels, PolicySession, check_inputs

_BATCH = 1


class Int8Network:
    """The int8 form's graph, compiled for one observation: on a processor batches are no quicker."""

    def __init__(self, model: bytes, threads: int) -> None:
        """``model`` is ONNX. Raises RuntimeError when OpenVINO cannot run it."""
        core = openvino.Core()
        graph = core.read_model(model)
        graph.reshape({part.any_name: [_BATCH, *part.partial_shape[1:]] for part in graph.inputs})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # What was left in float32 was left for a reason: no bfloat16, nothing quantised on the way.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            # Which core is free, the system knows better: others have work here too.
            "ENABLE_CPU_PINNING": False,
        }
        self._request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def run(self, feed: Mapping[str, np.ndarray]) -> ChunkResult:
        """``feed`` holds the graph's inputs, (B, …) each; its rows are run one after the other."""
        rows = [slice(row, row + _BATCH) for row in range(len(feed["state"]))]
        # Copied, not shared: a reference to the inputs would be kept until the next run.
        found = [
            self._request.infer({name: value[row] for name, value in feed.items()}, share_inputs=False)
            for row in rows
        ]
        actions, features = (np.concatenate([one[name] for one in found]) for name in ("actions", "features"))
        return ChunkResult(actions, features)


class OpenVinoSession(PolicySession):
    """A bundle on this machine's processor."""

    providers = (OPENVINO,)

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Load the int8 form, for ``threads`` threads. Raises RuntimeError when OpenVINO cannot."""
        # What is hashed is what is loaded: the bytes, not the path.
        self._network = Int8Network(bundle.read(bundle.onnx_name("int8")), threads)
        super().__init__(bundle.manifest, bundle.version, "int8")

    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """See `PolicySession.infer`."""
        check_inputs(self.manifest, state, images)
        feed: dict[str, np.ndarray] = {"state": state}
        feed |= {f"image.{camera.name}": images[camera.name] for camera in self.manifest.cameras}
        return self._network.run(feed)
