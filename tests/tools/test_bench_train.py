"""What `ratchet bench train` compares with computes the same as the network it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from learner.config import ModelConfig, TrainConfig
from tools.bench import train_peer
from tools.bench.train import in_turn
from tools.bench.train_data import PlainStep, ready, samples, trainer
from tools.bench.train_parts import compare

NETWORK = ModelConfig(
    preset="full",
    overrides={
        "dim": 32, "heads": 4, "ffn": 48, "chunk": 6, "execute": 6,
        "backbone_width": 8, "encoder_layers": 2, "vae_layers": 2,
    },
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_both_forms_of_the_step_give_the_same_loss_and_gradients() -> None:
    data = samples(64, 2, 12)
    config = TrainConfig(batch=3, model=NETWORK)
    difference = compare(data, config)
    assert difference["loss_difference"] < 1e-5
    assert difference["gradient_difference"] < 1e-4


def test_every_kind_of_step_learns_and_is_timed() -> None:
    data = samples(64, 2, 12)
    config = TrainConfig(batch=3, model=NETWORK, lr=1e-3, warmup=0)
    ours, plain = trainer(data, config), PlainStep(data, config)
    peer = train_peer.PeerACT(trainer(data, config).model).train()
    optimiser = train_peer.peer_optimiser(peer)
    batch = ready(data, ours.normaliser, 3, 6)
    before = peer.action_head.weight.detach().clone()
    losses: list[float] = []
    with ours.loader:
        steps = iter(range(100))
        kinds = {
            "peer": lambda: train_peer.peer_step(peer, optimiser, batch),
            "ours": lambda: ours.step(next(steps)),
            "plain": lambda: losses.append(plain()),
        }
        times = in_turn(kinds, 3)
    assert {name: len(values) for name, values in times.items()} == {"peer": 3, "ours": 3, "plain": 3}
    assert not torch.equal(before, peer.action_head.weight)
    assert losses[-1] < losses[0], "the same batch again and again"
