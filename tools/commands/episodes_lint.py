"""`ratchet episodes lint`: what is wrong with a set."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import click

from episodes.lerobot.lint import lint
from tools.console import show_json, show_table
from tools.options import PATH, json_flag
from tools.progress import bar


class Limit(click.ParamType):
    """``NAME=LOW:HIGH`` → (name, (low, high))."""

    name = "NAME=LOW:HIGH"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[float, float]]:
        """Fails with one line that shows the form."""
        name, _, span = str(value).partition("=")
        try:
            low, high = (float(end) for end in span.split(":"))
        except ValueError:
            low = high = math.nan
        if not name or not low <= high or math.isinf(low) or math.isinf(high):
            self.fail(f"{value!r} is not NAME=LOW:HIGH, such as gripper=0:1 or drift=-1e-3:1e-3", param, ctx)
        return name, (low, high)


@click.command(
    "lint",
    epilog="\b\nExamples:\n"
    "  ratchet episodes lint dataset\n"
    "  ratchet episodes lint episodes --where \"kind = 'demo'\" --limit gripper=0:1 --json",
)
@click.argument("path", type=PATH)
@click.option("--where", default="true", help="Which episodes of a store: an SQL condition, or a SELECT.")
@click.option(
    "--limit", "limits", type=Limit(), multiple=True, help="Limits of an action's column, in its unit."
)
@click.option("--no-pictures", is_flag=True, help="Do not decode any picture.")
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings too.")
@json_flag
def command(
    path: Path,
    where: str,
    limits: tuple[tuple[str, tuple[float, float]], ...],
    no_pictures: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Look for what is wrong with PATH: a LeRobot set (v2.1, v3.0) or an episode store.

    Timestamp drift and gaps, repeated, frozen or black pictures, videos that disagree with the data,
    joints that do not move, actions outside limits, wrong types. Exit code 1 when there are errors.
    """
    with bar("looking", 1, "episodes") as update:
        report = lint(
            path, limits=dict(limits), pictures=not no_pictures, where=where,
            progress=lambda done, total: update(done, "", total),
        )  # fmt: skip
    if as_json:
        show_json({**asdict(report), "ok": report.ok, "counts": report.counts()})
    else:
        if report.findings:
            show_table(
                ["severity", "check", "where", "what"],
                [[f.severity, f.check, f.episode, f.text] for f in report.findings],
            )
        worst = f"{sum(f.severity == 'error' for f in report.findings)} errors"
        click.echo(
            f"{report.episodes} episodes, {report.rows} rows, {report.pictures} pictures: {worst}, "
            f"{sum(f.severity == 'warning' for f in report.findings)} warnings"
        )
    if not report.ok or (strict and report.findings):
        sys.exit(1)
