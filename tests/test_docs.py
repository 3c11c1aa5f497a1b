"""What the documentation names exists: streams, modules and their members, verbs and their options."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from runtime.streams import markdown
from tools.cli import VERBS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_PACKAGES = r"(?:hal|policies|episodes|protos|runtime|policy_server|learner|tools|tests|systemd)"
_MODULE = re.compile(rf"`({_PACKAGES}/[\w/.-]+\.py)(?::([\w.]+))?`")
_BLOCK = re.compile(r"^```(?:sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def spoken(page: Path) -> Iterator[list[str]]:
    """Every `ratchet …` command of a page, word by word: in code blocks, and between backticks."""
    text = page.read_text()
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))]:
        found = re.search(r"(?:^|[ /])ratchet ([a-z].*)", line)
        if found:
            yield shlex.split(found[1], comments=True)


def members(module: Path) -> set[str]:
    """Names a module defines: functions, classes, constants, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{item.name}" for item in inner}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_the_stream_page_is_the_stream_table() -> None:
    page = (ROOT / "docs" / "streams.md").read_text()
    assert page.endswith(markdown()), "put the output of runtime.streams.markdown() there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_their_members_exist(page: Path) -> None:
    named = _MODULE.findall(page.read_text())
    assert named or page.name != "code_tour.md"
    for path, member in named:
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
        if member:
            assert member in members(ROOT / path), f"{page.name} names {member} of {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in spoken(page):
        command: click.Command = cli
        with click.Context(cli) as context:
            while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
                name = words.pop(0)
                found = command.get_command(context, name)
                assert found is not None, f"{page.name}: {name} is no command; VERBS has {', '.join(VERBS)}"
                command = found
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{page.name}: {command.name} takes no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_verbs_that_exist() -> None:
    verbs = {words[0] for words in spoken(ROOT / "README.md")}
    assert verbs
    assert verbs <= set(VERBS)
