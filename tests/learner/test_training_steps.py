"""Accumulated and recomputed steps are the same step; a batch gone wrong is named and stops the run."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_helpers import TINY, episode, tiny_config

from learner.checkpoint import load_checkpoint
from learner.compiled import compiled
from learner.config import JitterConfig, TrainConfig, WatchConfig
from learner.data import Dataset
from learner.device import pick_device, use_tf32
from learner.errors import DivergedError, StoppedError
from learner.finetune import Joined
from learner.loader.sampler import Part
from learner.memory import memory_kept
from learner.model import act_config, build_model, norm_stats
from learner.train import Trainer, train
from learner.watch import LossWatch, WeightWatch

STILL = JitterConfig(brightness=0.0, contrast=0.0, saturation=0.0)


def network(**overrides: object) -> object:
    return TINY.model_copy(update={"overrides": {**TINY.overrides, **overrides}})


def trainer(dataset: Dataset, config: TrainConfig, stats_of: Dataset | None = None) -> Trainer:
    model = build_model(act_config(dataset, config.model), config.seed)
    parts = [Part(0, len(dataset), config.batch)]
    return Trainer(model, norm_stats(stats_of or dataset), dataset, parts, config)


def test_two_batches_of_four_are_one_of_eight(dataset: Dataset) -> None:
    plain = network(backbone_norm="frozen", use_vae=False)
    runs = []
    for batch, accumulate in ((8, 1), (4, 2)):
        config = tiny_config(batch=batch, accumulate=accumulate, jitter=STILL, model=plain)
        run = trainer(dataset, config)
        with run.loader:
            loss = run.step(0)
        runs.append((loss, {name: p.grad for name, p in run.model.named_parameters()}))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    for name, gradient in runs[0][1].items():
        torch.testing.assert_close(gradient, runs[1][1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_recomputed_activations_end_with_the_same_bits(dataset: Dataset, norm: str) -> None:
    results = []
    for recompute in (False, True):
        model = network(dropout=0.2, backbone_norm=norm)
        results.append(train(dataset, tiny_config(steps=4, model=model, recompute=recompute)))
    for name, value in results[0].model.state_dict().items():
        assert torch.equal(value, results[1].model.state_dict()[name]), name


def poisoned(value: float) -> Dataset:
    """Twelve episodes; step 9 of ``e5`` asks for ``value`` rad."""
    episodes = [episode(seed) for seed in range(12)]
    episodes[5].action[9, 2] = value
    return Dataset.build(episodes, tiny_config().data)


@pytest.mark.parametrize(("value", "said"), [(1e4, "deviations above the median"), (3e38, "loss nan")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_poisoned_episode_is_named_and_the_last_checkpoint_stays(
    dataset: Dataset, tmp_path: Path, value: float, said: str, accumulate: int
) -> None:
    config = tiny_config(
        steps=400, batch=4, accumulate=accumulate, warmup=2, checkpoint_every=4, watch={"window": 10}
    )
    run = trainer(poisoned(value), config, stats_of=dataset)
    hit = next(n for n in range(400) if np.isin(_touching(run), run.sampler.indices(n).numpy()).any())
    # The window has to be full before anything can be called a spike.
    with pytest.raises(DivergedError, match="e5 at") as caught:
        run.run(tmp_path)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert str(tmp_path / "diverged.json") in message
    worst = report["batch"][0]
    assert worst["episode"] == "e5"
    assert 2 <= worst["step"] <= 9, "its chunk of eight reaches the poisoned step"
    assert len(report["batch"]) == 4, "the batch itself, not the others of the step"
    assert report["step"] >= hit // accumulate
    found = load_checkpoint(tmp_path, run.fingerprint)
    assert (found[1] if found else 0) == report["step"] // 4 * 4
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_whose_step_breaks_a_weight_is_named_though_its_loss_is_fine(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    run = trainer(dataset, tiny_config(accumulate=accumulate, checkpoint_every=4))
    broken = run.model.action_head.bias
    update, updates = run.optimizer.step, iter(range(100))

    def overflow() -> None:
        update()
        if next(updates) == 6:
            with torch.no_grad():
                broken[1] = -torch.inf

    monkeypatch.setattr(run.optimizer, "step", overflow)
    with pytest.raises(DivergedError, match=r"weight action_head\.bias is not finite") as caught:
        run.run(tmp_path)
    assert "step 6, batch of e" in str(caught.value)
    report = json.loads((tmp_path / "diverged.json").read_text())
    numbers = range(6 * accumulate, 7 * accumulate)
    taken = [dataset.where(run.sampler.indices(number).numpy()) for number in numbers]
    batch = sorted((row["episode"], row["step"]) for row in report["batch"])
    assert (report["step"], batch) == (6, sorted(sample for part in taken for sample in part))
    found = load_checkpoint(tmp_path, run.fingerprint)
    assert found is not None
    assert found[1] == 4
    assert all(bool(torch.isfinite(v).all()) for v in found[0].values() if v.is_floating_point())
    assert all(bool(torch.isfinite(v).all()) for v in run.average.model.state_dict().values())


def test_huge_weights_and_running_statistics_are_told_from_broken_ones() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    watch = WeightWatch(model)
    with torch.no_grad():
        model[0].weight.fill_(3e38)
        assert watch.not_finite() is None
        model[1].running_var[1] = torch.nan
        assert watch.not_finite() == "1.running_var"
        model[0].weight[0, 0] = torch.inf
        assert watch.not_finite() == "0.weight"


def test_a_run_keeps_the_memory_it_had_and_gives_it_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with memory_kept(torch.nn.Linear(4000, 4000, device="meta")):
        before = resident()
        torch.empty(2**24).fill_(1.0)  # 64 MiB
        assert resident() > before + 2**25
    assert resident() < before + 2**25


def _touching(run: Trainer) -> np.ndarray:
    """The samples whose chunk holds step 9 of the sixth episode, of 24 steps each."""
    return np.arange(5 * 24 + 2, 5 * 24 + 10)


def test_where_a_sample_is_from() -> None:
    first = Dataset.build([episode(0), episode(1)], tiny_config().data)
    corrected = Dataset.build([episode(7, taken_over_at=10)], tiny_config().data)
    assert first.where(np.asarray([0, 23, 24, 30])) == [("e0", 0), ("e0", 23), ("e1", 0), ("e1", 6)]
    both = Joined(first, corrected)
    assert both.where(np.asarray([25, 48, 50])) == [("e1", 1), ("e7", 10), ("e7", 12)]


def test_the_watch_lets_a_noisy_falling_loss_pass_and_stops_at_a_spike() -> None:
    rng = np.random.default_rng(0)
    watch = LossWatch(WatchConfig(window=50), after=20)
    for step in range(2000):
        loss = (0.1 + 5.0 / (1 + step)) * float(np.exp(0.3 * rng.normal()))
        assert watch.judge(loss) is None, step
    again = LossWatch(WatchConfig(window=50), after=20)
    again.load(watch.state())
    for one in (watch, again):
        alarm = one.judge(10.0)
        assert alarm is not None
        assert alarm.limit is not None
        assert 0.2 < alarm.limit < 2.0
    assert watch.judge(float("nan")) is not None
    assert LossWatch(WatchConfig(factor=0.0, window=10), 0).judge(float("inf")) is not None


def test_nothing_is_called_a_spike_during_the_warm_up() -> None:
    watch = LossWatch(WatchConfig(window=10), after=30)
    for loss in [1.0] * 29 + [1000.0]:
        assert watch.judge(loss) is None
    assert watch.judge(1000.0) is not None


def test_without_a_compiler_the_network_runs_as_it_is_and_says_so(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(act_config(dataset, TINY), 0)
    cpu = torch.device("cpu")
    assert compiled(model, "auto", cpu, 100_000) is model
    assert compiled(model, "off", torch.device("cuda"), 100_000) is model
    monkeypatch.setattr("learner.compiled.shutil.which", lambda name: None)
    assert compiled(model, "on", cpu, 10) is model
    assert "g++" in caplog.text


def test_a_compiled_run_is_continued_to_the_bit_under_the_same_names(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and called as torch.compile does it, without the minutes that its C++ takes.
    traced = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr("learner.compiled.torch.compile", traced)
    monkeypatch.setattr("learner.compiled.shutil.which", lambda name: name)
    config = tiny_config(steps=6, checkpoint_every=3, compile="on", model=network(dropout=0.1))
    straight = train(dataset, config)

    def leave() -> bool:
        return (tmp_path / "checkpoint.safetensors").exists()

    with pytest.raises(StoppedError):
        train(dataset, config, folder=tmp_path, stop=leave)
    resumed = train(dataset, config, folder=tmp_path)
    plain = build_model(act_config(dataset, config.model), 0).state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert name in plain


def test_tf32_is_only_borrowed() -> None:
    before = torch.get_float32_matmul_precision()
    with use_tf32("auto", torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
    with use_tf32("fp32", torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_run_is_continued(dataset: Dataset, tmp_path: Path) -> None:
    assert pick_device("auto").type == "cuda"
    config = tiny_config(steps=12, model=network(dropout=0.1))
    train(dataset, config.model_copy(update={"steps": 12}), folder=tmp_path)
    again = train(dataset, config, folder=tmp_path)
    assert again.losses == ()
    assert next(again.model.parameters()).is_cuda
