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


class OpenVinoSession(PolicySession):
    """One observation at a time on this machine's processor; batches are taken apart.

    Kernels are made for the shapes of one observation, which on a processor is no slower than together.
    """

    providers = (OPENVINO,)

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Load the int8 form, for ``threads`` threads. Raises RuntimeError when OpenVINO cannot."""
        core = openvino.Core()
        # What is hashed is what is loaded: the bytes, not the path.
        model = core.read_model(bundle.read(bundle.onnx_name("int8")))
        model.reshape({part.any_name: [_BATCH, *part.partial_shape[1:]] for part in model.inputs})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # What was left in float32 was left for a reason: no bfloat16, nothing quantised on the way.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            # Which core is free, the system knows better: others have work here too.
            "ENABLE_CPU_PINNING": False,
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        super().__init__(bundle.manifest, bundle.version, "int8")

    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """See `PolicySession.infer`."""
        check_inputs(self.manifest, state, images)
        found = [self._one(state, images, slice(row, row + _BATCH)) for row in range(len(state))]
        actions, features = (np.concatenate(part) for part in zip(*found, strict=True))
        return ChunkResult(actions, features)

    def _one(self, state: Floats, images: Mapping[str, Pixels], row: slice) -> tuple[Floats, Floats]:
        pictures = {f"image.{camera.name}": images[camera.name][row] for camera in self.manifest.cameras}
        found = self._request.infer({"state": state[row], **pictures}, share_inputs=True)
        return found["actions"], found["features"]
