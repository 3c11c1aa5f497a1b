"""What commands print: tables for people, JSON for programs, one line for what is wrong with the disk."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.errors import UsageError

# Nothing is cut off where a program or a file reads.
_PIPE_WIDTH = 240
_BARRED = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def say(text: str) -> None:
    """One line for a person, on stderr: what is going on, not a result."""
    click.echo(text, err=True)


def show_json(value: Any) -> None:
    """The result on stdout, as JSON."""
    click.echo(json.dumps(value, indent=1, default=_plain))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on stdout. Columns whose name starts with ``>`` are numbers and stand to the right."""
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    table = Table(title=escape(title) or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(escape(name.lstrip(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(text(cell)) for cell in row))
    console.print(table)


def show_fields(fields: Mapping[str, object]) -> None:
    """Names and values, one a line, on stdout; what has no value is left out."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if value is not None:
            click.echo(f"{name:<{width}}  {text(value)}")


def text(value: object) -> str:
    """A cell: nothing for None, few digits for numbers, plain JSON for what has parts."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain)
    return str(value)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """A full disk, or a folder below ``where`` that cannot be written, becomes a UsageError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in _BARRED and error.filename and Path(error.filename).is_relative_to(where):
            why = (error.strerror or "refused").lower()
            raise UsageError(f"cannot write {error.filename} ({why}); choose another folder") from error
        if error.errno not in _FULL:
            raise
        raise UsageError(f"no space left writing below {where}; free some and run it again") from error


def _plain(value: Any) -> Any:
    for method in ("to_json", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)
