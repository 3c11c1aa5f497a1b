"""Fine-tuning mixes replay in, keeps the parent's normalisation, and stays near the champion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_helpers import episode, tiny_config

from learner.config import FinetuneConfig
from learner.data import Dataset
from learner.errors import DataError
from learner.finetune import Joined, champion_actions, finetune, mix
from learner.train import TrainResult


def config(**changes: object) -> FinetuneConfig:
    values: dict[str, object] = {"train": tiny_config(steps=60, lr=1e-3), "max_oversample": 100.0}
    return FinetuneConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def corrections() -> Dataset:
    taken_over = [episode(seed, taken_over_at=10) for seed in range(100, 106)]
    return Dataset.build(taken_over, tiny_config().data, trim=True)


@pytest.mark.parametrize(
    ("base", "corrected", "cap", "expected"),
    [(8000, 900, 100.0, 16), (8000, 900, 2.0, 6), (8000, 100, 4.0, 2), (100, 5000, 100.0, 16)],
)
def test_at_least_half_of_a_batch_is_base_and_oversampling_is_capped(
    base: int, corrected: int, cap: float, expected: int
) -> None:
    tuning = FinetuneConfig(train=tiny_config(batch=32), max_oversample=cap)
    replay, new = mix(base, corrected, tuning)
    assert (replay.count, new.count) == (32 - expected, expected)
    assert (new.first, new.size) == (base, corrected)


def test_less_than_half_base_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="greater than or equal to"):
        FinetuneConfig(base_share=0.3)


def test_it_learns_the_corrections_and_keeps_the_normalisation(
    champion: TrainResult, dataset: Dataset, corrections: Dataset
) -> None:
    before = _error(champion, corrections)
    tuned = finetune(champion.model, champion.normaliser.stats, dataset, corrections, config())
    assert _error(tuned, corrections) < 0.8 * before
    assert tuned.normaliser.stats == champion.normaliser.stats
    untouched = _error(champion, corrections)
    assert untouched == before, "the champion itself must not be trained"


def test_the_control_arm_sees_no_correction(champion: TrainResult, dataset: Dataset) -> None:
    arm = config(corrections=False, train=tiny_config(steps=5))
    alone = finetune(champion.model, champion.normaliser.stats, dataset, None, arm)
    assert len(alone.losses) == 1


def test_the_penalty_holds_base_actions_near_the_champion(champion: TrainResult) -> None:
    moved = [replace(e, action=e.action + 0.3) for e in (episode(seed) for seed in range(12))]
    base = Dataset.build(moved, tiny_config().data)
    wanted = champion_actions(champion.model, champion.normaliser.stats, base, config())

    def drift(penalty: float) -> float:
        tuning = config(corrections=False, penalty=penalty, train=tiny_config(steps=60, lr=1e-3))
        tuned = finetune(champion.model, champion.normaliser.stats, base, None, tuning)
        now = champion_actions(tuned.model, tuned.normaliser.stats, base, tuning)
        return float((now - wanted)[:, 0].abs().mean())

    assert drift(10.0) < 0.5 * drift(0.0)


def test_too_few_corrections_are_refused(champion: TrainResult, dataset: Dataset) -> None:
    two = Dataset.build([episode(s, taken_over_at=5) for s in (1, 2)], tiny_config().data)
    with pytest.raises(DataError, match="2 corrected episodes are too few"):
        finetune(champion.model, champion.normaliser.stats, dataset, two, config())


def test_another_robots_episodes_are_refused(champion: TrainResult, dataset: Dataset) -> None:
    e = episode(0)
    other = type(e)(e.episode, e.state[:, :5], e.action, e.images, e.source, e.clone)
    with pytest.raises(DataError, match="5 states"):
        finetune(
            champion.model,
            champion.normaliser.stats,
            Dataset.build([other], tiny_config().data),
            None,
            config(corrections=False),
        )


def test_joined_sets_keep_their_samples(dataset: Dataset, corrections: Dataset) -> None:
    both = Joined(dataset, corrections)
    rows = torch.tensor([3, 5, len(dataset), len(dataset) + 2])
    batch = both.batch(rows, 4)
    assert torch.equal(batch.state[:2], dataset.state[[3, 5]])
    assert torch.equal(batch.state[2:], corrections.state[[0, 2]])
    assert batch.base.tolist() == [True, True, False, False]
    assert len(both) == len(dataset) + len(corrections)


def _error(result: TrainResult, data: Dataset) -> float:
    chunk = result.model.config.chunk
    batch = data.batch(torch.arange(len(data)), chunk)
    with torch.no_grad():
        out = result.model(result.normaliser.state(batch.state), result.normaliser.images(batch.images))
    apart = (result.normaliser.restore_actions(out.actions) - batch.actions).abs()
    return float((apart * ~batch.is_pad[..., None]).mean())
