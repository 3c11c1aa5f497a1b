"""Import of ACT checkpoints as LeRobot writes them (0.4 with processors, and before).

A checkpoint is the directory ``pretrained_model``: ``config.json``, ``model.safetensors`` and,
since 0.4, the processors with the statistics. Weights keep their names; only the prefix goes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from policies.act import ACT
from policies.config import ACTConfig, CameraShape, FeatureStats, NormStats
from policies.errors import CheckpointError
from policies.normalise import Normaliser

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
MAX_JSON_BYTES = 2**20
_SAME_NAME = ("use_vae", "kl_weight", "dropout", "pre_norm")
_RENAMED = {
    "chunk_size": "chunk",
    "n_action_steps": "execute",
    "dim_model": "dim",
    "n_heads": "heads",
    "dim_feedforward": "ffn",
    "feedforward_activation": "activation",
    "n_encoder_layers": "encoder_layers",
    "n_decoder_layers": "decoder_layers",
    "n_vae_encoder_layers": "vae_layers",
    "latent_dim": "latent",
}
_ONLY: dict[str, object] = {
    "type": "act",
    "n_obs_steps": 1,
    "vision_backbone": "resnet18",
    "replace_final_stride_with_dilation": False,
}


def import_lerobot(directory: Path) -> tuple[ACT, Normaliser]:
    """Load a checkpoint: the network in evaluation mode and its normaliser.

    Raises CheckpointError when a file is missing or damaged, when it is not an ACT network of the
    supported kind, when weights are missing or left over, and when a feature has no statistics
    (LeRobot would silently leave it unnormalised).
    """
    if not directory.is_dir():
        raise CheckpointError(f"no directory {directory}; give LeRobot's 'pretrained_model' directory")
    raw = _json(directory / "config.json")
    config = read_config(raw, directory)
    weights = _tensors(directory / "model.safetensors")
    stats = _statistics(directory, raw, config, weights)
    model = ACT(config)
    state = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{directory / 'model.safetensors'} does not fit config.json: {reason}"
        ) from error
    return model.eval(), Normaliser(stats, config)


def read_config(raw: Mapping[str, Any], where: Path) -> ACTConfig:
    """``config.json`` as our configuration. Camera order is that of its ``input_features``."""
    for name, supported in _ONLY.items():
        if raw.get(name, supported) != supported:
            raise CheckpointError(f"{where}: {name} is {raw[name]!r}; only {supported!r} can be imported")
    inputs, outputs = raw.get("input_features") or {}, raw.get("output_features") or {}
    kinds = {name: feature.get("type") for name, feature in inputs.items()}
    if kinds.get(STATE) != "STATE" or ACTION not in outputs:
        raise CheckpointError(f"{where}: needs features {STATE!r} and {ACTION!r}; it has {sorted(inputs)}")
    visual = [name for name, kind in kinds.items() if kind == "VISUAL"]
    other = [name for name in inputs if name != STATE and name not in visual]
    if other:
        raise CheckpointError(
            f"{where}: input {other[0]!r} is not supported; train with state and images only"
        )
    fields = {ours: raw[theirs] for theirs, ours in _RENAMED.items() if theirs in raw}
    fields |= {name: raw[name] for name in _SAME_NAME if name in raw}
    try:
        cameras = tuple(
            CameraShape(name=name.removeprefix(IMAGES), height=shape[1], width=shape[2])
            for name, shape in ((name, inputs[name]["shape"]) for name in visual)
        )
        return ACTConfig(
            state_dim=inputs[STATE]["shape"][0],
            action_dim=outputs[ACTION]["shape"][0],
            cameras=cameras,
            backbone_norm="frozen",
            **fields,
        )
    except (ValidationError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{where}: config.json cannot be used: {_first_line(error)}") from error


def _statistics(
    directory: Path, raw: Mapping[str, Any], config: ACTConfig, weights: Mapping[str, Tensor]
) -> NormStats:
    if (directory / "policy_preprocessor.json").is_file():
        before, modes = _processor(directory, "policy_preprocessor.json", "normalizer_processor")
        after, _ = _processor(directory, "policy_postprocessor.json", "unnormalizer_processor")
        for name in (f"{ACTION}.mean", f"{ACTION}.std"):
            if name in after and name in before and not before[name].equal(after[name]):
                raise CheckpointError(
                    f"{directory}: the two processors differ in {name}; repair the checkpoint"
                )
        table = {**before, **{key: value for key, value in after.items() if key.startswith(f"{ACTION}.")}}
    else:
        table, modes = _legacy(config, weights), raw.get("normalization_mapping") or {}
    try:
        return NormStats(
            state=_feature(table, STATE, modes.get("STATE", "MEAN_STD"), config.state_dim),
            action=_feature(table, ACTION, modes.get("ACTION", "MEAN_STD"), config.action_dim),
            images={
                camera.name: _feature(table, IMAGES + camera.name, modes.get("VISUAL", "MEAN_STD"), 3)
                for camera in config.cameras
            },
        )
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{directory}: no usable statistics ({_first_line(error)}); save the policy with its processors"
        ) from error


def _feature(table: Mapping[str, Tensor], name: str, mode: str, dims: int) -> FeatureStats:
    """Mean and std, or what amounts to them: min-max is centre and half range, identity 0 and 1."""

    def values(kind: str) -> list[float]:
        return table[f"{name}.{kind}"].double().flatten().tolist()

    if mode == "IDENTITY":
        return FeatureStats(mean=(0.0,) * dims, std=(1.0,) * dims)
    if mode == "MEAN_STD":
        return FeatureStats(mean=tuple(values("mean")), std=tuple(values("std")))
    if mode == "MIN_MAX":
        pairs = list(zip(values("min"), values("max"), strict=True))
        return FeatureStats(
            mean=tuple((low + high) / 2 for low, high in pairs),
            std=tuple((high - low) / 2 for low, high in pairs),
        )
    raise CheckpointError(f"normalisation {mode!r} of {name!r} is not supported; use MEAN_STD or MIN_MAX")


def _processor(directory: Path, name: str, step_name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Statistics and normalisation modes of the named step of a processor file."""
    for step in _json(directory / name).get("steps", []):
        if step.get("registry_name") == step_name and "state_file" in step:
            file = Path(step["state_file"]).name  # a plain name: nothing outside the checkpoint is read
            return _tensors(directory / file), step.get("config", {}).get("norm_map", {})
    raise CheckpointError(f"{directory / name} has no {step_name} with statistics; save the policy again")


def _legacy(config: ACTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics kept among the weights before 0.4, dots of the feature's name as underscores."""
    table = {}
    names = [(STATE, "normalize_inputs"), (ACTION, "unnormalize_outputs")]
    names += [(IMAGES + camera.name, "normalize_inputs") for camera in config.cameras]
    for name, part in names:
        for kind in ("mean", "std", "min", "max"):
            buffer = weights.get(f"{part}.buffer_{name.replace('.', '_')}.{kind}")
            if buffer is not None:
                table[f"{name}.{kind}"] = buffer
    return table


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_JSON_BYTES} bytes; is it a checkpoint?")
        loaded = json.loads(data)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path} ({error.strerror}); is the checkpoint complete?"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a JSON object; is it a checkpoint?")
    return loaded


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path} ({_first_line(error)}); copy the checkpoint again"
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error).splitlines()[0]
