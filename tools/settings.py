"""`--set key=value`: one training setting from the command line, with a guess at what was meant."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from learner.config import ModelConfig, TrainConfig
from policies.config import ACTConfig
from tools.config import parse
from tools.errors import UsageError

_SHORT = {"pretrained": "model.pretrained"}
_FROM_DATA = {"state_dim", "action_dim", "cameras"}
NETWORK_KEYS = tuple(k for k in ACTConfig.model_fields if k not in _FROM_DATA)
"""Settings of the network; they go where ``model.overrides`` is."""


def train_config(raw: Mapping[str, Any], settings: Iterable[str], where: str = "--set") -> TrainConfig:
    """``raw`` (as TOML gives it) with the ``key=value`` settings over it.

    Keys are dotted (``data.gaps``, ``jitter.brightness``); those of the network (``chunk``, ``dim``,
    ``pretrained``) stand alone. Raises UsageError naming the key and what it may have meant.
    """
    values = _copy(raw)
    known = setting_keys()
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {setting!r} is not key=value, such as --set batch=64")
        key = _SHORT.get(key, key)
        if key in NETWORK_KEYS:
            key = f"model.overrides.{key}"
        elif key not in known:
            raise UsageError(f"--set: unknown key '{key}'; {_hint(key, known)}")
        _put(values, key.split("."), _value(text.strip()))
    config = parse(TrainConfig, values, where)
    for name, value in config.model.overrides.items():
        if name not in NETWORK_KEYS:
            raise UsageError(f"{where}: unknown key 'model.overrides.{name}'; {_hint(name, known)}")
        _check_network(name, value, where)
    return config


def setting_keys() -> tuple[str, ...]:
    """Every key ``--set`` takes."""
    return (*_leaves(TrainConfig, ""), *NETWORK_KEYS)


def _leaves(model: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            skip = {"overrides"} if inner is ModelConfig else set()
            yield from (k for k in _leaves(inner, f"{prefix}{name}.") if k.rpartition(".")[2] not in skip)
        else:
            yield prefix + name


def _hint(key: str, known: tuple[str, ...]) -> str:
    last = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


def _value(text: str) -> Any:
    """As TOML reads it; what is no TOML value is a plain word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_network(name: str, value: Any, where: str) -> None:
    """One field's bounds; what fields mean together is checked when the network is made."""
    from pydantic import TypeAdapter, ValidationError

    field = ACTConfig.model_fields[name]
    try:
        TypeAdapter(_annotated(field)).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{where}: '{name}': {error.errors()[0]['msg'].lower()} (got {value!r})") from None


def _annotated(field: Any) -> Any:
    from typing import Annotated

    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"'{part}' is no table of settings; see `ratchet train --help`")
        values = inner
    values[path[-1]] = value


def _copy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
