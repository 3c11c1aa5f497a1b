"""A real LeRobot 0.4.4 checkpoint: its chunks and its training loss, reproduced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from policies.errors import CheckpointError
from policies.lerobot import import_lerobot
from policies.loss import act_loss
from tests.policies.conftest import FIXTURES

CHECKPOINT = FIXTURES / "lerobot_act"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason=f"needs the checkpoint at {CHECKPOINT}")
CAMERAS = ("top", "front")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(CHECKPOINT / "golden_io.safetensors")


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint with some of config.json changed."""

    def make(**changes: object) -> Path:
        target = tmp_path / "checkpoint"
        target.mkdir()
        for file in CHECKPOINT.iterdir():
            if file.name != "golden_io.safetensors":
                shutil.copyfile(file, target / file.name)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **changes}))
        return target

    return make


def test_chunk_from_raw_inputs(golden: dict[str, torch.Tensor]) -> None:
    model, normaliser = import_lerobot(CHECKPOINT)
    assert [camera.name for camera in model.config.cameras] == list(CAMERAS)
    state = normaliser.state(golden["in.observation.state"])
    images = []
    for index, name in enumerate(CAMERAS):
        # The fixture's pictures are floats in 0…1; ours arrive as bytes, which 0…255 floats stand for.
        pixels = golden[f"in.observation.images.{name}"].permute(0, 2, 3, 1) * 255.0
        images.append(normaliser.image(index, pixels))
        torch.testing.assert_close(
            images[-1], golden[f"norm.observation.images.{name}"], atol=1e-5, rtol=1e-5
        )
    with torch.inference_mode():
        normalised = model(state, images).actions
    torch.testing.assert_close(state, golden["norm.observation.state"], atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised, golden["out.chunk_normalized"], atol=1e-5, rtol=0)
    # Raw actions are degrees up to 100 here, where one float32 step is 8e-6: compare in deviations.
    error = (normaliser.restore_actions(normalised) - golden["out.chunk"]) / normaliser.action_std
    assert error.abs().max() < 1e-5


def test_training_loss(golden: dict[str, torch.Tensor]) -> None:
    model, normaliser = import_lerobot(CHECKPOINT)
    expected = json.loads((CHECKPOINT / "golden.json").read_text())
    actions, is_pad = normaliser.actions(golden["in.action"]), golden["in.action_is_pad"]
    images = {name: golden[f"norm.observation.images.{name}"] for name in CAMERAS}
    torch.manual_seed(123)
    output = model.train()(golden["norm.observation.state"], images, actions, is_pad)
    terms = act_loss(output, actions, is_pad, model.config.kl_weight)
    assert terms.l1.item() == pytest.approx(expected["l1_loss"], abs=1e-5)
    assert terms.kl.item() == pytest.approx(expected["kld_loss"], abs=1e-5)
    assert terms.total.item() == pytest.approx(expected["loss"], abs=1e-4)


def test_checkpoint_of_before_processors(
    damaged: Callable[..., Path], golden: dict[str, torch.Tensor]
) -> None:
    directory = damaged()
    stats = safetensors.torch.load_file(
        directory / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    )
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    for key, value in stats.items():
        feature, kind = key.rsplit(".", 1)
        part = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
        weights[f"{part}.buffer_{feature.replace('.', '_')}.{kind}"] = value.clone()
    safetensors.torch.save_file(weights, directory / "model.safetensors")
    for file in directory.glob("policy_*"):
        file.unlink()
    _, legacy = import_lerobot(directory)
    _, modern = import_lerobot(CHECKPOINT)
    assert legacy.stats == modern.stats


def test_min_max_normalisation_maps_the_range_to_one(damaged: Callable[..., Path]) -> None:
    directory = damaged()
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        text = (directory / name).read_text()
        (directory / name).write_text(text.replace('"STATE": "MEAN_STD"', '"STATE": "MIN_MAX"'))
    _, normaliser = import_lerobot(directory)
    stats = safetensors.torch.load_file(
        directory / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    )
    ones = torch.ones(6)
    torch.testing.assert_close(normaliser.state(stats["observation.state.max"]), ones, atol=1e-4, rtol=0)
    torch.testing.assert_close(normaliser.state(stats["observation.state.min"]), -ones, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "diffusion"}, "diffusion"),
        ({"n_obs_steps": 2}, "n_obs_steps"),
        ({"vision_backbone": "resnet50"}, "resnet50"),
        ({"feedforward_activation": "glu"}, "activation"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [6]}}}, "cameras"),
        ({"dim_model": 128}, "does not fit"),
    ],
)
def test_unsupported_checkpoints_say_why(
    damaged: Callable[..., Path], change: dict[str, object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        import_lerobot(damaged(**change))
    assert "\n" not in str(caught.value)


def test_incomplete_checkpoints_say_why(damaged: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pretrained_model"):
        import_lerobot(tmp_path / "nowhere")
    directory = damaged()
    file = directory / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    stats = safetensors.torch.load_file(file)
    del stats["observation.images.front.std"]
    safetensors.torch.save_file(stats, file)
    with pytest.raises(CheckpointError, match=r"front\.std"):
        import_lerobot(directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        import_lerobot(directory)
