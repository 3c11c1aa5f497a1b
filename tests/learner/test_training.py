"""Training learns, resumes to the bit, stops at the first NaN, and publishes averaged weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from learner_helpers import Shop, episode, tiny_config

from learner.average import WeightAverage
from learner.checkpoint import load_checkpoint
from learner.config import JitterConfig, TrainConfig, load_config
from learner.data import Dataset
from learner.errors import CheckpointError, ConfigError, DataError, DivergedError
from learner.images import jitter
from learner.loader.sampler import Part
from learner.model import act_config, build_model, norm_stats
from learner.offline import evaluate_offline
from learner.train import Progress, Trainer, TrainResult, train
from policies.session import OnnxSession


class InterruptedRunError(Exception):
    """The process ends here."""


def interrupt_at(step: int) -> Progress:
    def progress(done: int, _steps: int, _loss: float) -> None:
        if done >= step:
            raise InterruptedRunError

    return progress


def assert_same(a: TrainResult, b: TrainResult) -> None:
    mine, theirs = a.model.state_dict(), b.model.state_dict()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_it_learns_to_read_the_pictures(champion: TrainResult, shop: Shop) -> None:
    held_out = Dataset.build([episode(seed) for seed in range(4)], tiny_config().data)
    report = evaluate_offline(OnnxSession(shop.bundle), held_out, stride=3)
    assert champion.losses[-1][1] < 0.5 * champion.losses[0][1]
    assert report.beats_baselines, report.scaled
    assert report.samples == 32
    assert len(report.policy.per_dimension) == 6
    assert len(report.policy.per_step) == 8


def test_offline_baselines_are_what_they_say(shop: Shop) -> None:
    e = episode(50)
    report = evaluate_offline(OnnxSession(shop.bundle), Dataset.build([e], tiny_config().data))
    n, chunk = len(e.action), 8
    mean = np.asarray(shop.bundle.manifest.normalisation.action.mean)
    held, fixed = [], []
    for i in range(n):
        ahead = e.action[i : i + chunk]
        held.append(np.abs(ahead - e.action[max(0, i - 1)]))
        fixed.append(np.abs(ahead - mean))
    assert report.last_action.mean == pytest.approx(float(np.concatenate(held).mean()), rel=1e-5)
    assert report.mean_action.mean == pytest.approx(float(np.concatenate(fixed).mean()), rel=1e-5)
    assert report.values == sum(len(h) for h in held)


def test_an_interrupted_run_ends_with_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config()
    straight = train(dataset, config)
    with pytest.raises(InterruptedRunError):
        train(dataset, config, folder=tmp_path, progress=interrupt_at(15))
    found = load_checkpoint(tmp_path, _fingerprint(dataset, config))
    assert found is not None
    assert found[1] == 10
    resumed = train(dataset, config, folder=tmp_path)
    assert_same(straight, resumed)
    assert straight.losses[-1] == resumed.losses[-1]


def test_a_finished_run_is_not_trained_further(dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, tiny_config(), folder=tmp_path)
    again = train(dataset, tiny_config(), folder=tmp_path)
    assert_same(first, again)
    assert again.losses == ()


def test_same_seed_same_weights_other_seed_other_weights(dataset: Dataset) -> None:
    first = train(dataset, tiny_config(steps=5))
    torch.rand(3)  # the caller's random numbers are not the run's
    assert_same(first, train(dataset, tiny_config(steps=5)))
    other = train(dataset, tiny_config(steps=5, seed=1))
    assert not torch.equal(first.model.action_head.weight, other.model.action_head.weight)


def test_training_leaves_the_callers_random_numbers_alone(dataset: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(dataset, tiny_config(steps=2))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("at", [15, 20])
def test_nan_stops_and_the_last_good_checkpoint_stays(dataset: Dataset, tmp_path: Path, at: int) -> None:
    config = tiny_config()
    trainer = _trainer(dataset, config)

    def poison(done: int, _steps: int, _loss: float) -> None:
        if done == at:
            with torch.no_grad():
                trainer.model.action_head.weight[0, 0] = float("nan")

    with pytest.raises(DivergedError, match=f"step {at}"):
        trainer.run(tmp_path, poison)
    found = load_checkpoint(tmp_path, trainer.fingerprint)
    assert found is not None
    assert found[1] == 10
    assert all(torch.isfinite(v).all() for v in found[0].values() if v.is_floating_point())


def test_a_checkpoint_of_another_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tiny_config(steps=10), folder=tmp_path)
    with pytest.raises(CheckpointError, match="belongs to run"):
        train(dataset, tiny_config(steps=10, lr=2e-3), folder=tmp_path)


def test_a_damaged_checkpoint_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tiny_config(steps=10), folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError) as caught:
        train(dataset, tiny_config(steps=10), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_batchnorm_statistics_are_those_of_the_averaged_weights(dataset: Dataset) -> None:
    result = train(dataset, tiny_config(steps=20, batchnorm_batches=24))
    first = result.model.backbone[0].bn1
    frames = result.normaliser.image(0, dataset.picture("front"))
    with torch.no_grad():
        seen = result.model.backbone[0].conv1(frames)
    torch.testing.assert_close(first.running_mean, seen.mean(dim=(0, 2, 3)), rtol=0.1, atol=0.05)
    assert not any(m.training for m in result.model.modules())


def test_average_warms_up_and_converges() -> None:
    live = torch.nn.Linear(1, 1)
    average = WeightAverage(live, 0.99)
    with torch.no_grad():
        live.weight.fill_(5.0)
    average.update(0)
    assert average.model.weight.item() > 4.0, "the first step must not be an average with the start"
    for step in range(1, 1500):
        average.update(step)
    assert average.model.weight.item() == pytest.approx(5.0, abs=1e-3)


def test_a_still_joint_does_not_blow_up(dataset: Dataset) -> None:
    quiet = [episode(s) for s in range(3)]
    for e in quiet:
        e.state[:, 4] = 0.25
    stats = norm_stats(Dataset.build(quiet, tiny_config().data))
    assert stats.state.std[4] >= 1e-3 * max(stats.state.std)


def test_jitter_is_per_picture_bounded_and_repeatable() -> None:
    pixels = torch.full((6, 8, 8, 3), 128, dtype=torch.uint8)
    pixels[:, :4] = torch.tensor([200, 30, 60], dtype=torch.uint8)
    config = JitterConfig()
    a = jitter(pixels, config, torch.Generator().manual_seed(1))
    b = jitter(pixels, config, torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert a.min() >= 0.0
    assert a.max() <= 255.0
    assert len({round(float(x.mean()), 3) for x in a}) == 6


def test_no_jitter_changes_nothing() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    off = JitterConfig(brightness=0.0, contrast=0.0, saturation=0.0)
    torch.testing.assert_close(jitter(pixels, off, torch.Generator()), pixels.float(), rtol=0.0, atol=1e-2)


def test_an_override_that_does_not_exist_is_one_line(dataset: Dataset) -> None:
    config = tiny_config(model={"overrides": {"chunks": 8}})
    with pytest.raises(DataError, match="chunks"):
        train(dataset, config)


def test_unknown_configuration_keys_name_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text("stepps = 100\n")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        load_config(path, TrainConfig)
    path.write_text("steps = 0\n")
    with pytest.raises(ConfigError, match="steps"):
        load_config(path, TrainConfig)


def _trainer(dataset: Dataset, config: TrainConfig) -> Trainer:
    model = build_model(act_config(dataset, config.model), config.seed)
    return Trainer(model, norm_stats(dataset), dataset, [Part(0, len(dataset), config.batch)], config)


def _fingerprint(dataset: Dataset, config: TrainConfig) -> str:
    return _trainer(dataset, config).fingerprint
