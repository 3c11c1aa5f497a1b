"""What ACT does otherwise in training for speed is the same mathematics, draw for draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.config import ACTConfig, CameraShape
from policies.dropout import dropout
from policies.perceptron import perceptron
from policies.resnet import FrozenBatchNorm2d, ResNet18, normed
from policies.transformer import DecoderLayer, Encoder
from policies.winograd import lay_out

CAMERA = CameraShape(name="front", height=32, width=32)


def config(**changes: object) -> ACTConfig:
    values = {"cameras": (CAMERA,), "dim": 32, "heads": 4, "ffn": 48, "chunk": 8, "execute": 4}
    return ACTConfig.model_validate({**values, **changes})


def gradients(module: nn.Module, out: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
    parameters = [*inputs, *module.parameters()]
    found = torch.autograd.grad((out * weights).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_close(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_as_many_as_it_should_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 2503)  # not a multiple of four
    out = dropout(x, p, True)
    share = float((out == 0).float().mean())
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    neighbours = (out[:, :-1] == 0) & (out[:, 1:] == 0)
    assert float(neighbours.float().mean()) == pytest.approx(p * p, rel=0.02), "draws are independent"


def test_dropout_is_a_function_of_the_seed_and_off_in_evaluation() -> None:
    x = torch.randn(7, 9)
    torch.manual_seed(1)
    first = dropout(x, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x, 0.3, True))
    assert not torch.equal(first, dropout(x, 0.3, True))
    assert dropout(x, 0.3, False) is x


def test_dropout_sends_the_gradient_where_the_value_went() -> None:
    x = torch.randn(50, 30, requires_grad=True)
    out = dropout(x, 0.4, True)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (out.detach() != 0) / 0.6)


def inner_layer(out: Tensor) -> Tensor:
    """(R, C) what `perceptron` keeps for the way back."""
    assert out.grad_fn is not None
    kept: Tensor = out.grad_fn.saved_tensors[3]  # type: ignore[attr-defined]
    return kept


@pytest.mark.parametrize("rows", [3, 90])  # 90: by two threads
def test_perceptron_is_two_layers_with_a_dropped_relu_between(rows: int) -> None:
    first, second = nn.Linear(12, 1300), nn.Linear(1300, 12)
    both = nn.ModuleList([first, second])
    x = torch.randn(rows, 5, 12, requires_grad=True)
    mine = perceptron(x, first, second, F.relu, 0.25)
    rectified = F.relu(first(x))
    mask = (inner_layer(mine) != 0).view(rows, 5, 1300)
    off = float(((rectified != 0) & ~mask).sum() / (rectified != 0).sum())
    assert off == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / (rows * 3000)) ** 0.5)
    plain = second(rectified * mask / 0.75)
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(both, mine, x), gradients(both, plain, x))


def test_a_perceptron_does_not_hide_what_is_not_a_number() -> None:
    first, second = nn.Linear(12, 20), nn.Linear(20, 12)
    with torch.no_grad():
        first.weight[3, 3] = torch.nan
    assert perceptron(torch.ones(40, 12), first, second, F.relu, 0.25).isnan().any()


def test_masks_do_not_depend_on_how_many_threads_made_them() -> None:
    x, threads = torch.randn(300, 1001), torch.get_num_threads()
    outs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(6)
            outs.append(dropout(x, 0.3, True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_rows_of_a_perceptron_are_dropped_independently() -> None:
    first = nn.Linear(4, 600)
    nn.init.ones_(first.bias)
    nn.init.zeros_(first.weight)
    off = (inner_layer(perceptron(torch.zeros(400, 4), first, nn.Linear(600, 4), F.relu, 0.25)) == 0).float()
    assert float((off[1:] * off[:-1]).mean()) == pytest.approx(0.0625, abs=0.003)
    assert float((off[:, 256:512] * off[:, :256]).mean()) == pytest.approx(0.0625, abs=0.004)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_decoders_bottom_is_attention_of_zeros(pre_norm: bool, p: float) -> None:
    layer = DecoderLayer(config(pre_norm=pre_norm, dropout=p)).train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases too: they are all that zeros let through
    pos = torch.randn(1, 8, 32, requires_grad=True)
    zeros = torch.zeros(3, 8, 32)
    torch.manual_seed(3)
    mine = layer._begin(pos, 3).expand(3, -1, -1)
    torch.manual_seed(3)
    plain = layer._attend(layer.norm1(zeros) if pre_norm else zeros, pos)
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(layer, mine, pos), gradients(layer, plain, pos))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_posterior_needs_the_first_token_only(pre_norm: bool) -> None:
    encoder = Encoder(config(pre_norm=pre_norm, dropout=0.0, encoder_layers=2), 2).train()
    x, pos = torch.randn(3, 10, 32, requires_grad=True), torch.randn(1, 10, 32)
    keep = torch.ones(3, 10, dtype=torch.bool)
    keep[1, 6:] = False
    mine = encoder(x, pos, keep, first_only=True)
    plain = encoder(x, pos, keep)[:, :1]
    assert mine.shape == (3, 1, 32)
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    assert_close(gradients(encoder, mine, x), gradients(encoder, plain, x))


def test_a_frozen_norm_inside_the_convolution_changes_nothing() -> None:
    torch.manual_seed(4)
    net = ResNet18(8, FrozenBatchNorm2d, 1)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in (module.weight, module.running_var):
                buffer.uniform_(0.5, 1.5)
            module.bias.normal_()
    x = torch.randn(2, 3, 32, 32)
    mine, plain = net.train()(x), net.eval()(x)
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(net, mine), gradients(net, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_winograds_convolution_is_the_convolution() -> None:
    torch.manual_seed(8)
    conv, norm = nn.Conv2d(256, 264, 3, padding=1, bias=False), FrozenBatchNorm2d(264)
    for buffer in (norm.weight, norm.running_var):
        buffer.uniform_(0.5, 1.5)
    norm.bias.normal_()
    lay_out(nn.Sequential(conv))
    x = torch.randn(2, 256, 4, 6, requires_grad=True)
    mine, plain = normed(conv, norm.train(), x), norm.eval()(conv(x))
    assert "Winograd" in str(mine.grad_fn)
    exact = norm.double()(F.conv2d(x.double(), conv.weight.double(), padding=1))
    scale = float(exact.detach().abs().mean())
    assert float((mine - exact).detach().abs().mean()) < 1e-6 * scale
    for a, b in zip(gradients(conv, mine, x), gradients(conv, plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    with torch.no_grad():
        assert normed(conv, norm.float().train(), x[..., :5]).shape == (2, 264, 4, 5), "odd: the plain way"


def test_padding_at_the_end_does_not_reach_attention_with_dropout() -> None:
    encoder = Encoder(config(dropout=0.2), 1).train()
    x, pos = torch.randn(2, 6, 32), torch.randn(1, 6, 32)
    keep = torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = x.clone()
    other[:, 4:] = 100.0
    torch.manual_seed(5)
    first = encoder(x, pos, keep)[:, :4]
    torch.manual_seed(5)
    torch.testing.assert_close(first, encoder(other, pos, keep)[:, :4])
