"""Normalisation: formulas, round trip, resizing and refusal of statistics that do not fit."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from policies.config import FeatureStats
from policies.errors import ConfigError
from policies.normalise import Normaliser, feature_stats
from tests.policies.conftest import TINY, make_batch, make_model, make_stats


def test_values_follow_the_formula_and_come_back() -> None:
    _, normaliser = make_model(TINY)
    raw = torch.randn(5, 8, 6)
    torch.testing.assert_close(normaliser.actions(raw), (raw + 0.2) / 0.4)
    torch.testing.assert_close(normaliser.restore_actions(normaliser.actions(raw)), raw)
    torch.testing.assert_close(normaliser.state(torch.full((1, 6), 0.6)), torch.ones(1, 6))


def test_a_joint_that_never_moved_stays_finite() -> None:
    stats = make_stats(TINY).model_copy(update={"state": FeatureStats(mean=(0.3,) * 6, std=(0.0,) * 6)})
    state = Normaliser(stats, TINY).state(torch.full((1, 6), 0.3))
    assert torch.isfinite(state).all()


def test_images_become_channels_first_in_the_network_order() -> None:
    _, normaliser = make_model(TINY)
    raw = {name: torch.from_numpy(image) for name, image in make_batch(TINY, 2).images.items()}
    front, wrist = normaliser.images(raw)
    assert front.shape == (2, 3, 64, 96)
    assert wrist.shape == (2, 3, 64, 64)
    expected = (raw["front"][0, 5, 7, 1] / 255.0 - 0.456) / 0.224
    torch.testing.assert_close(front[0, 1, 5, 7], expected)
    assert front.is_contiguous(memory_format=torch.channels_last)


def test_resize_averages_when_halving() -> None:
    config = TINY.model_copy(update={"resize": (32, 48)})
    normaliser = Normaliser(make_stats(config), config)
    raw = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    mean = raw.double().view(1, 32, 2, 48, 2, 3).mean(dim=(2, 4)) / 255.0
    expected = (mean[0, 3, 4, 2] - 0.406) / 0.225
    assert normaliser.image(0, raw)[0, 2, 3, 4].item() == pytest.approx(expected.item(), abs=1e-5)


def test_statistics_must_fit() -> None:
    stats = make_stats(TINY)
    short = stats.model_copy(update={"action": FeatureStats(mean=(0.0,), std=(1.0,))})
    with pytest.raises(ConfigError, match="action statistics"):
        Normaliser(short, TINY)
    with pytest.raises(ConfigError, match="wrist"):
        Normaliser(stats.model_copy(update={"images": {"front": stats.images["front"]}}), TINY)
    with pytest.raises(ValidationError):
        FeatureStats(mean=(float("nan"),), std=(1.0,))
    with pytest.raises(ValidationError):
        FeatureStats(mean=(0.0,), std=(-1.0,))


def test_feature_stats_are_population_statistics() -> None:
    stats = feature_stats(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert stats.mean == (2.0, 5.0)
    assert stats.std == (1.0, 0.0)
