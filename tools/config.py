"""Read ``ratchet.toml``: typed, bounded, and an unknown key is an error that guesses what was meant."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

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
        raise UsageError(f"{where}: {_explain(model, error)}") from None


def load(model: type[Model], path: Path) -> Model:
    """Read and validate a configuration file in one go."""
    return parse(model, read_toml(path), str(path))


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(sorted(known))}"
        return f"unknown key '{key}'{hint}{more}"
    if first["type"] == "missing":
        return f"key '{key}' is missing{more}"
    return f"key '{key}': {first['msg'].lower()} (got {first['input']!r}){more}"


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that ``path`` leads to."""
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(str(part))
        if field is None:
            continue  # the name of an entry in a table of tables, such as cameras.<name>
        current = _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The model inside ``X | None``, ``dict[str, X]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
