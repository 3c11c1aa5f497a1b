"""Read ``ratchet.toml``: typed, bounded, and an unknown key is an error that guesses what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from protos.configuration import first_problem
from tools.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The file as nested dicts. Raises UsageError with the line when it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no configuration at {path}; write one with `ratchet init {path}`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def parse(model: type[Model], data: dict[str, Any], where: str) -> Model:
    """``data`` as a ``model``. Raises UsageError naming the first wrong key and its likely name."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(model, error)}") from None


def load(model: type[Model], path: Path) -> Model:
    """Read and validate a configuration file in one go."""
    return parse(model, read_toml(path), str(path))
