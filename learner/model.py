"""Building the network and its normalisation for a data set."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from learner.config import ModelConfig
from learner.data import Dataset
from learner.errors import DataError
from policies.act import ACT
from policies.config import (
    RESNET18_BLOCKS,
    RESNET18_WIDTH,
    ACTConfig,
    CameraShape,
    FeatureStats,
    NormStats,
    act_full,
    act_small,
)
from policies.normalise import feature_stats
from policies.pretrained import find_weights, load_pretrained

# A joint that hardly moves must not turn its sensor noise into a large input.
_RELATIVE_STD_FLOOR = 1e-3
_IMAGE_SAMPLES = 2000


def act_config(dataset: Dataset, config: ModelConfig) -> ACTConfig:
    """The preset's network for the data's dimensions and cameras, with ``overrides`` applied.

    Raises DataError when a picture is smaller than the network takes or an override does not fit, and
    PretrainedError when there are no such pretrained weights.
    """
    try:
        cameras = tuple(
            CameraShape(name=name, height=height, width=width)
            for name, (height, width) in dataset.sizes.items()
        )
        build = act_small if config.preset == "small" else act_full
        fields = build(cameras, dataset.state_dim, dataset.action_dim).model_dump()
        if config.overrides.get("backbone", "resnet18") != "resnet18" or config.pretrained is not None:
            # A preset's ResNet may be a small one; these come in the published size.
            fields |= {"backbone_width": RESNET18_WIDTH, "backbone_blocks": RESNET18_BLOCKS}
        built = ACTConfig.model_validate({**fields, **config.overrides})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "settings"
        reason = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"the data do not fit the network: {where}: {reason}", "change the model or image_size"
        ) from error
    if config.pretrained is not None:
        find_weights(built, config.pretrained)
    return built


def fresh(dataset: Dataset, config: ModelConfig, seed: int) -> tuple[ACT, NormStats]:
    """The network training begins with, and what normalises its inputs.

    Pretrained backbones get pictures normalised as they were pretrained; all else is of ``dataset``.
    Raises as `act_config` does, and PretrainedError for a file that is damaged or of another network.
    """
    model = build_model(act_config(dataset, config), seed)
    pictures = None if config.pretrained is None else load_pretrained(model, config.pretrained)
    return model, norm_stats(dataset, pictures)


def build_model(config: ACTConfig, seed: int) -> ACT:
    """A fresh network whose initial weights are a function of ``seed``; the caller's RNG is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ACT(config)


def norm_stats(dataset: Dataset, pictures: FeatureStats | None = None) -> NormStats:
    """Mean and standard deviation of state, action (raw units) and image channels (RGB in 0…1).

    ``pictures``, when given, stands for every camera instead of the data's own.
    """
    images: dict[str, FeatureStats] = {}
    count = len(dataset)
    rows = torch.linspace(0, count - 1, min(count, _IMAGE_SAMPLES)).long().unique()
    for name in dataset.sizes:
        images[name] = pictures or _floored(
            feature_stats(dataset.picture(name, rows.numpy()).float() / 255.0)
        )
    return NormStats(
        state=_floored(feature_stats(dataset.state)),
        action=_floored(feature_stats(dataset.action)),
        images=images,
    )


def _floored(stats: FeatureStats) -> FeatureStats:
    floor = max(1e-6, _RELATIVE_STD_FLOOR * max(stats.std))
    return FeatureStats(mean=stats.mean, std=tuple(max(s, floor) for s in stats.std))
