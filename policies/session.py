"""Running a bundle: the interface every backend shares, and ONNX Runtime's implementation of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from policies.bundle import Bundle, Precision
from policies.engine import OPENVINO, Provider, providers, session_options
from policies.errors import InputError
from policies.manifest import Manifest

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """``actions`` float32 (B, H, A) in rad; ``features`` float32 (B, D), the encoder's pooled tokens."""

    actions: Floats
    features: Floats


class PolicySession(ABC):
    """A loaded bundle, ready to run. Not thread-safe: one caller at a time."""

    providers: tuple[str, ...]
    """What it really runs on, the preferred one first."""

    def __init__(self, manifest: Manifest, version: str, precision: Precision) -> None:
        self.manifest = manifest
        self.version = version
        self.precision: Precision = precision
        self.passed_over: tuple[str, ...] = ()  # faster ways to run it that failed here, each with why

    @property
    def chunk(self) -> int:
        """Actions in an answer."""
        return self.manifest.chunk

    @abstractmethod
    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """``state`` float32 (B, S) rad; ``images`` uint8 RGB (B, H, W, 3) by camera name.

        Raises InputError, naming the input, when one is missing or of another shape or dtype.
        """


def check_inputs(manifest: Manifest, state: Floats, images: Mapping[str, Pixels]) -> None:
    """Raise InputError unless the observation is what the policy was trained on."""
    width = len(manifest.state_names)
    if state.ndim != 2 or state.shape[1] != width or state.dtype != np.float32:
        raise InputError(f"state is {state.dtype} {state.shape}, the policy takes float32 (B, {width}) rad")
    if not np.isfinite(state).all():
        raise InputError("state holds NaN or infinity; check the joint readings")
    for camera in manifest.cameras:
        image = images.get(camera.name)
        if image is None:
            raise InputError(f"no picture of camera {camera.name!r} among {sorted(images)}; connect it")
        want = (state.shape[0], camera.height, camera.width, 3)
        if image.shape != want or image.dtype != np.uint8:
            raise InputError(f"camera {camera.name!r} gives {image.dtype} {image.shape}, not uint8 {want}")


class OnnxSession(PolicySession):
    """A bundle under ONNX Runtime, on the best provider of this machine."""

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision = "fp32",
        threads: int = 1,
        spinning: bool = False,
        on: Sequence[Provider] | None = None,
    ) -> None:
        """Load the form of that ``precision``; see `policies.engine` for threads and spinning.

        ``on`` are ONNX Runtime's providers to try in turn; None: those of `policies.engine.providers`.
        """
        # What is hashed is what is loaded: the bytes, not the path.
        model = bundle.read(bundle.onnx_name(precision))
        options = session_options(threads, spinning)
        chosen = on or [one for one in providers(precision) if one[0] != OPENVINO]
        self._session = ort.InferenceSession(model, options, providers=list(chosen))
        self.providers = tuple(self._session.get_providers())
        super().__init__(bundle.manifest, bundle.version, precision)

    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """See `PolicySession.infer`."""
        check_inputs(self.manifest, state, images)
        feed: dict[str, npt.NDArray[np.generic]] = {"state": state}
        for camera in self.manifest.cameras:
            feed[f"image.{camera.name}"] = images[camera.name]
        actions, features = self._session.run(["actions", "features"], feed)
        return ChunkResult(actions, features)
