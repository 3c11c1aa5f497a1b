"""The network: published sizes, shapes, and what the latent and padding may influence."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from policies.act import ACT, sine_positions
from policies.config import ACTConfig, CameraShape, act_full, act_small
from policies.errors import InputError
from policies.loss import act_loss, masked_l1
from policies.resnet import FrozenBatchNorm2d, ResNet18
from tests.policies.conftest import TINY, make_model


def learnable(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pictures(config: ACTConfig, batch: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [config.image_size(camera) for camera in config.cameras]
    return [torch.randn(batch, 3, *size, generator=generator) for size in sizes]


def test_full_network_has_the_published_size() -> None:
    with torch.device("meta"):
        model = ACT(act_full())
    assert learnable(model) == 51_597_190
    state = model.state_dict()
    assert len(state) == 234
    assert sum(value.numel() for value in state.values()) == 51_668_614


def test_backbone_is_resnet18_of_torchvision() -> None:
    net = ResNet18()
    # torchvision's resnet18 has 11,689,512 parameters, 513,000 of them in the classifier and 9,600
    # in norms that are buffers when frozen.
    assert learnable(net) == 11_689_512 - 513_000 - 9_600
    assert {"layer2.0.downsample.1.running_var", "layer4.1.bn2.bias", "conv1.weight"} <= set(net.state_dict())
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 2, 3)


def test_torchvision_weights_load_without_the_classifier() -> None:
    donor, net = ResNet18(8, torch.nn.BatchNorm2d), ResNet18(8)
    weights = {**donor.state_dict(), "fc.weight": torch.zeros(2, 64), "fc.bias": torch.zeros(2)}
    net.load_torchvision(weights)
    picture = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(net.double()(picture), donor.double().eval()(picture))
    del weights["layer1.0.bn1.weight"]
    with pytest.raises(RuntimeError, match=r"layer1\.0\.bn1\.weight"):
        net.load_torchvision(weights)


def test_frozen_norm_equals_batch_norm_in_evaluation_and_never_moves() -> None:
    norm, frozen = torch.nn.BatchNorm2d(4), FrozenBatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    assert not list(frozen.parameters())


@pytest.mark.parametrize("per_camera", [True, False])
@pytest.mark.parametrize("same_size", [True, False])
def test_output_shapes(per_camera: bool, same_size: bool) -> None:
    cameras = (
        CameraShape(name="a", height=64, width=96),
        CameraShape(name="b", height=64, width=96 if same_size else 64),
    )
    config = TINY.model_copy(update={"cameras": cameras, "backbone_per_camera": per_camera})
    model = ACT(config).eval()
    output = model(torch.randn(3, 6), pictures(config, 3))
    assert output.actions.shape == (3, 8, 6)
    assert output.features.shape == (3, 32)
    assert output.mu is None


def test_shared_backbone_sees_each_camera_by_itself() -> None:
    """One pass over both cameras' pictures gives what two passes give."""
    cameras = tuple(CameraShape(name=name, height=64, width=64) for name in "ab")
    model = ACT(TINY.model_copy(update={"cameras": cameras, "backbone_per_camera": False})).eval()
    state, (left, right) = torch.randn(2, 6), pictures(model.config, 2)
    together = model._image_tokens([left, right])
    apart = torch.cat([model._project(model.backbone(image)) for image in (left, right)], dim=1)
    torch.testing.assert_close(together, apart)
    # As published, nothing tells one camera's tokens from the other's.
    swapped = model(state, [right, left]).actions
    torch.testing.assert_close(model(state, [left, right]).actions, swapped, rtol=1e-4, atol=1e-4)


def test_images_by_name_or_in_order() -> None:
    model, _ = make_model(TINY)
    front, wrist = pictures(TINY, 1)
    state = torch.zeros(1, 6)
    named = model(state, {"wrist": wrist, "front": front}).actions
    torch.testing.assert_close(named, model(state, [front, wrist]).actions)
    with pytest.raises(InputError, match="wrist"):
        model(state, {"front": front})
    with pytest.raises(InputError, match="resize"):
        model(state, [front, front])


def test_actions_steer_the_latent_only_while_training() -> None:
    model, _ = make_model(TINY)
    state, images, actions = torch.randn(2, 6), pictures(TINY, 2), torch.randn(2, 8, 6)
    plain = model(state, images)
    given = model(state, images, actions, torch.zeros(2, 8, dtype=torch.bool))
    torch.testing.assert_close(plain.actions, given.actions)
    assert given.mu is None
    assert model.train()(state, images, actions).mu is not None


def test_padding_never_reaches_posterior_or_loss() -> None:
    model, _ = make_model(TINY)
    model.train()
    state, actions = torch.randn(2, 6), torch.randn(2, 8, 6)
    is_pad = torch.zeros(2, 8, dtype=torch.bool)
    is_pad[:, 5:] = True
    other = actions.clone()
    other[:, 5:] = 99.0
    torch.testing.assert_close(
        model._posterior(state, actions, is_pad)[0], model._posterior(state, other, is_pad)[0]
    )
    predicted = torch.randn(2, 8, 6)
    torch.testing.assert_close(masked_l1(predicted, actions, is_pad), masked_l1(predicted, other, is_pad))


def test_loss_terms_against_their_formulas() -> None:
    model, _ = make_model(TINY)
    actions, is_pad = torch.randn(2, 8, 6), torch.zeros(2, 8, dtype=torch.bool)
    output = model(torch.randn(2, 6), pictures(TINY, 2))
    mu, log_var = torch.randn(2, 4), torch.randn(2, 4)
    terms = act_loss(output._replace(mu=mu, log_sigma_x2=log_var), actions, is_pad, 10.0)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mu, (log_var / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(terms.kl, kl.sum(1).mean())
    torch.testing.assert_close(terms.total, terms.l1 + 10.0 * terms.kl)
    assert act_loss(output, actions, is_pad, 10.0).kl == 0.0


def test_it_learns_one_batch_by_heart() -> None:
    model, _ = make_model(TINY.model_copy(update={"kl_weight": 0.0}))
    model.train()
    torch.manual_seed(0)
    state, images, actions = torch.randn(4, 6), pictures(TINY, 4), torch.randn(4, 8, 6)
    is_pad = torch.zeros(4, 8, dtype=torch.bool)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        terms = act_loss(model(state, images, actions, is_pad), actions, is_pad, 0.0)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        losses.append(terms.l1.item())
    assert losses[-1] < 0.4 * losses[0]


def test_autocast_keeps_the_posterior_in_float32() -> None:
    model, _ = make_model(TINY)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 6), pictures(TINY, 2), torch.randn(2, 8, 6))
    assert output.mu is not None
    assert output.mu.dtype == torch.float32
    assert torch.isfinite(output.actions).all()


def test_sine_positions() -> None:
    table = sine_positions(3, 4)
    assert table[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert table[2, 0].item() == pytest.approx(0.9092974)  # sin 2
    assert table[2, 3].item() == pytest.approx(0.9998000)  # cos 0.02


def test_small_network_is_small() -> None:
    with torch.device("meta"):
        model = ACT(act_small())
    assert learnable(model) < 9_000_000
    assert model.config.execute * 2 == model.config.chunk


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 7},
        {"execute": 200},
        {"unknown": 1},
        {"cameras": ()},
        {"cameras": (CameraShape(name="a", height=64, width=64),) * 2},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ACTConfig.model_validate({**act_full().model_dump(), **wrong})
