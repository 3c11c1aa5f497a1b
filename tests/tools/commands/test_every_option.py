"""Every command and benchmark: no number it takes may be NaN or infinite."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click
import pytest

from tools.cli import VERBS
from tools.commands.bench import BENCHES
from tools.options import FiniteRange


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from commands(f"{name} {inner}", found)


@pytest.mark.parametrize("verb", VERBS)
def test_numbers_are_finite(verb: str) -> None:
    module, attribute, _ = VERBS[verb]
    for name, command in commands(verb, getattr(importlib.import_module(module), attribute)):
        for option in command.params:
            if isinstance(option.type, click.types.FloatParamType):
                assert isinstance(option.type, FiniteRange), f"ratchet {name}: {option.name}"


def test_benches_are_among_them() -> None:
    module, attribute, _ = VERBS["bench"]
    group = getattr(importlib.import_module(module), attribute)
    assert {name for name, _ in commands("bench", group)} >= {f"bench {name}" for name in BENCHES}
