"""A bundle under torch: the reference form, and the compiled one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from policies.act import ACT
from policies.bundle import Bundle
from policies.errors import ManifestError
from policies.export import ServedACT
from policies.manifest import MODEL_FILE
from policies.normalise import Normaliser
from policies.processors import Processors
from policies.session import ChunkResult, Floats, Pixels, PolicySession, check_inputs


def load_model(bundle: Bundle) -> tuple[ACT, Normaliser]:
    """The network (in evaluation mode) and its normaliser, for running or for training on.

    Raises ManifestError when the weights are not those of the stated architecture.
    """
    config = Processors.read(bundle).architecture
    model = ACT(config)
    try:
        model.load_state_dict(safetensors.torch.load(bundle.read(MODEL_FILE)))
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ManifestError(f"{bundle.path / MODEL_FILE} does not fit its architecture: {reason}") from error
    return model.eval(), Normaliser(bundle.manifest.normalisation, config)


class TorchSession(PolicySession):
    """Runs a bundle's torch form: on a CUDA GPU where torch has one, else on the CPU, its thread count."""

    providers = ("torch",)

    def __init__(self, bundle: Bundle, compile: bool = False) -> None:
        """``compile`` goes through ``torch.compile``, which needs a C++ compiler on the machine and
        takes up to a minute at the first `infer` and at the first of another batch size. On a GPU it
        records CUDA graphs, so that a run is one launch."""
        model, normaliser = load_model(bundle)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        served = ServedACT(model, normaliser).eval().to(self._device)
        for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        mode = "reduce-overhead" if self._device.type == "cuda" else "default"
        self._run = torch.compile(served, mode=mode) if compile else served
        super().__init__(bundle.manifest, bundle.version, "fp32")

    def infer(self, state: Floats, images: Mapping[str, Pixels]) -> ChunkResult:
        """See `policies.session.PolicySession.infer`."""
        check_inputs(self.manifest, state, images)
        pictures = [_tensor(images[camera.name]).to(self._device) for camera in self.manifest.cameras]
        # no_grad, not inference_mode: compiled code then serves training's tensors as well.
        with torch.no_grad():
            actions, features = self._run(_tensor(state).to(self._device), *pictures)
        # Copied off the device before the next run, which writes into the same memory of a CUDA graph.
        return ChunkResult(actions.cpu().numpy(), features.cpu().numpy())


def _tensor(array: Floats | Pixels) -> torch.Tensor:
    # Frames from shared memory are read-only, which torch warns about: it only reads them here.
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
