"""Training that begins with pretrained backbones: their weights, their normalisation, their size."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from learner_helpers import TINY, episode, tiny_config

from learner.config import ModelConfig
from learner.data import Dataset
from learner.errors import DataError
from learner.model import act_config, fresh
from learner.train import train
from policies.efficientnet import EfficientNetLite0
from policies.errors import PretrainedError

SMALL = {key: value for key, value in TINY.overrides.items() if not key.startswith("backbone")}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.build([episode(seed) for seed in range(3)], tiny_config().data)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    safetensors.torch.save_file(EfficientNetLite0().state_dict(), path)
    return path


def lite0(weights: Path | None, **overrides: object) -> ModelConfig:
    chosen = {**SMALL, "backbone": "efficientnet_lite0", **overrides}
    return ModelConfig.model_validate({"overrides": chosen, "pretrained": weights})


def test_every_camera_begins_with_them_and_sees_pictures_as_they_were_pretrained(
    dataset: Dataset, weights: Path
) -> None:
    model, stats = fresh(dataset, lite0(weights, backbone_norm="frozen"), seed=0)
    given = safetensors.torch.load_file(weights)
    assert len(model.backbones()) == 2
    for net in model.backbones():
        torch.testing.assert_close(net.state_dict()["conv_head.weight"], given["conv_head.weight"])
    assert {s.mean[0] for s in stats.images.values()} == {127 / 255}
    assert stats.state != stats.action
    other, plain = fresh(dataset, lite0(None), seed=0)
    assert plain.images != stats.images
    torch.testing.assert_close(other.action_head.weight, model.action_head.weight)


def test_training_moves_them_and_keeps_that_normalisation(dataset: Dataset, weights: Path) -> None:
    frozen = lite0(weights, backbone_norm="frozen")
    config = tiny_config(steps=1, batch=2, warmup=0, model=frozen)
    result = train(dataset, config)
    begun, given = result.model.backbones()[0].state_dict(), safetensors.torch.load_file(weights)
    moved = (begun["conv_head.weight"] - given["conv_head.weight"]).abs().max()
    assert 0.0 < float(moved) <= 2 * config.lr
    torch.testing.assert_close(begun["bn1.running_var"], given["bn1.running_var"])
    assert result.normaliser.stats.images["front"].std == (128 / 255,) * 3


def test_sizes_that_do_not_belong_together_are_refused(dataset: Dataset, weights: Path) -> None:
    with pytest.raises(DataError, match="efficientnet_lite0 has one size"):
        act_config(dataset, lite0(None, backbone_width=16))
    narrow = ModelConfig.model_validate({"overrides": TINY.overrides, "pretrained": weights})
    with pytest.raises(PretrainedError, match="width 64"):
        act_config(dataset, narrow)
    # The small preset's narrow ResNet gives way to the size there are weights of.
    config = act_config(dataset, ModelConfig(overrides=SMALL, pretrained=weights))
    assert (config.backbone, config.backbone_width, config.backbone_blocks) == ("resnet18", 64, 2)
