"""The techniques of `ratchet bench train` one by one, and whether both forms of the step compute the same."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.config import TrainConfig
from learner.data import Dataset
from learner.optimiser import make_optimiser
from learner.train import Trainer
from policies.config import ACTConfig
from policies.dropout import dropout
from policies.loss import act_loss
from policies.perceptron import perceptron
from tools.bench import train_peer
from tools.bench.common import quantile
from tools.bench.train_data import ready, trainer

_SEED = 7


def compare(data: Dataset, config: TrainConfig) -> dict[str, float]:
    """How far loss and gradient of one batch lie apart in both forms, relative; without dropout's draws."""
    still = config.model.model_copy(update={"overrides": {**config.model.overrides, "dropout": 0.0}})
    ours = trainer(data, config.model_copy(update={"model": still, "device": "cpu"}))
    peer = train_peer.PeerACT(ours.model).train()
    batch = ready(data, ours.normaliser, config.batch, ours.model.config.chunk)
    state, images, actions, is_pad = batch
    torch.manual_seed(_SEED)
    theirs = train_peer.peer_loss(peer, batch)
    theirs.backward()
    torch.manual_seed(_SEED)
    ours.model.train()
    with ours.autocast:
        output = ours.model(state, images, actions, is_pad)
    mine = act_loss(output, actions, is_pad, ours.model.config.kl_weight).total
    mine.backward()
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    apart = whole = 0.0
    for name, parameter in ours.model.named_parameters():
        gradient, target = parameter.grad, wanted[name]
        if gradient is None or target is None:
            continue
        apart += float((gradient - target).double().square().sum())
        whole += float(target.double().square().sum())
    loss = float(theirs.detach())
    return {
        "loss_difference": abs(float(mine.detach()) - loss) / loss,
        "gradient_difference": (apart / whole) ** 0.5,
    }


def parts(ours: Trainer, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each technique's work the plain way and ours, once a step, forward and back."""
    from tools.bench.train import in_turn

    config, device = ours.model.config, ours.device
    kinds: dict[str, dict[str, Any]] = {
        "dropout": _dropout(config, device),
        "perceptron": _perceptron(ours),
        "posterior_of_one_token": _posterior(ours),
        "decoder_bottom": _decoder(ours),
        "backbone": _backbone(ours),
        "optimiser": _optimisers(ours),
    }
    out = {}
    for name, pair in kinds.items():
        times = in_turn(pair, rounds)
        out[name] = {kind: quantile(values, 50) for kind, values in times.items()}
    return out


def fastest_product(kind: torch.dtype) -> float:
    """GFLOP/s of the fastest product of two square matrices of ``kind`` on this processor."""
    side, best = 1024, 0.0
    a, b = torch.randn(side, side).to(kind), torch.randn(side, side).to(kind)
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        best = max(best, 2e-9 * side**3 / (time.perf_counter() - began))
    return round(best, 1)


def multiplied(config: ACTConfig, batch: int) -> float:
    """GFLOP of the products and convolutions of an eager step, forward and back."""
    pixels = sum(h * w for h, w in (config.image_size(c) for c in config.cameras))
    backbone = 1.814e9 / 224**2 * pixels  # multiplications of ResNet-18 at 224², He et al. 2015, table 1
    layer = 4 * config.dim**2 + 2 * config.dim * config.ffn
    memory = 2 + sum(h * w for h, w in (config.feature_size(c) for c in config.cameras))
    encoders = layer * (config.encoder_layers * memory + config.vae_layers * (config.chunk + 2))
    crossed = layer + 2 * config.dim**2  # the keys and values of the memory come on top
    decoder = config.decoder_layers * (crossed * config.chunk + 2 * config.dim**2 * (memory + config.chunk))
    return 2e-9 * 3 * batch * (backbone + encoders + decoder)


def _both(forward: Any, *inputs: Tensor) -> Any:
    """Forward, and back with a gradient of ones."""

    def run() -> None:
        out = forward(*inputs)
        out.backward(torch.ones_like(out))

    return run


def _dropout(config: ACTConfig, device: torch.device) -> dict[str, Any]:
    x = torch.randn(8 * (config.chunk + 2), config.ffn, device=device, requires_grad=True)
    return {
        "plain": _both(lambda v: F.dropout(v, 0.1, True), x),
        "ours": _both(lambda v: dropout(v, 0.1, True), x),
    }


def _perceptron(ours: Trainer) -> dict[str, Any]:
    layer = ours.model.vae_encoder.layers[0]
    x = torch.randn(8, ours.model.config.chunk + 2, ours.model.config.dim, requires_grad=True)
    x = x.detach().to(ours.device).requires_grad_()
    p = ours.model.config.dropout

    def plain(v: Tensor) -> Tensor:
        out: Tensor = layer.linear2(F.dropout(F.relu(layer.linear1(v)), p, True))
        return out

    return {
        "plain": _both(plain, x),
        "ours": _both(lambda v: perceptron(v, layer.linear1, layer.linear2, F.relu, p), x),
    }


def _posterior(ours: Trainer) -> dict[str, Any]:
    model, config = ours.model, ours.model.config
    x = torch.randn(8, config.chunk + 2, config.dim).to(ours.device).requires_grad_()
    keep = torch.ones(8, config.chunk + 2, dtype=torch.bool, device=ours.device)
    pos = model.vae_encoder_pos_enc
    return {
        "plain": _both(lambda v: model.vae_encoder(v, pos, keep)[:, 0], x),
        "ours": _both(lambda v: model.vae_encoder(v, pos, keep, first_only=True)[:, 0], x),
    }


def _decoder(ours: Trainer) -> dict[str, Any]:
    layer, config = ours.model.decoder.layers[0], ours.model.config
    pos = ours.model.decoder_pos_embed.weight[None]
    zeros = torch.zeros(8, config.chunk, config.dim, device=ours.device)
    return {
        "plain": _both(lambda v: layer._attend(zeros, v), pos),
        "ours": _both(lambda v: layer._begin(v, 8), pos),
    }


def _backbone(ours: Trainer) -> dict[str, Any]:
    size = ours.model.config.image_size(ours.model.config.cameras[0])
    images = [torch.randn(8, 3, *size, device=ours.device) for _ in range(2)]
    peer = train_peer.PeerACT(copy.deepcopy(ours.model).cpu()).backbone.to(ours.device)
    together = torch.cat(images).contiguous(memory_format=torch.channels_last)
    net = ours.model.backbone
    return {
        "plain": _both(lambda: torch.cat([peer(image) for image in images])),
        "ours": _both(lambda: net(together)),
    }


def _optimisers(ours: Trainer) -> dict[str, Any]:
    model = copy.deepcopy(ours.model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    plain = train_peer.peer_optimiser(model)
    fused = make_optimiser(model, ours.config)
    return {"plain": plain.step, "ours": fused.step}
