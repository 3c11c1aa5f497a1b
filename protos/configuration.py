"""What is wrong with a configuration, in one line: its first wrong key, and what was probably meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True, slots=True)
class Problem:
    """``what`` is wrong; ``hint`` says what to write instead, "" where the message itself does."""

    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


def first_problem(model: type[BaseModel], error: ValidationError) -> Problem:
    """The first of the problems in ``error``, and how many more there are; an unknown key before others, as
    it often is the one that is missing."""
    problems = error.errors()
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return Problem(f"unknown key '{key}'", hint + more)
    if first["type"] == "missing":
        return Problem(f"key '{key}' is missing{more}", "")
    reason = first["msg"].removeprefix("Value error, ")
    if not key:  # the values do not go together
        return Problem(f"{reason}{more}", "")
    return Problem(f"key '{key}': {reason[:1].lower()}{reason[1:]} (got {first['input']!r}){more}", "")


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
