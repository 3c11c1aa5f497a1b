"""`ratchet episodes prune`: make the store fit into a budget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from episodes.retention import prune as prune_store
from episodes.store import EpisodeStore
from tools.console import say, show_json
from tools.options import FiniteRange, json_flag, store_option

_GB = 1e9


@click.command(epilog="\b\nExample:\n  ratchet episodes prune --store episodes --budget-gb 50 --dry-run")
@store_option
@click.option("--budget-gb", type=FiniteRange(0.0), required=True, help="1 GB is 10^9 bytes.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_flag
def prune(store: Path, budget_gb: float, dry_run: bool, as_json: bool) -> None:
    """Delete the oldest episodes that are synced and unflagged until the store fits.

    Never one that is flagged, in which somebody took over, or of which no checked copy is known
    (`ratchet episodes sync`). A running service does this itself: [store] budget_gb.
    """
    with EpisodeStore.open(store, create=False) as opened:
        result = prune_store(opened, round(budget_gb * _GB), dry_run)
    if as_json:
        show_json({**asdict(result), "over": result.over, "dry_run": dry_run})
        return
    for episode_id in result.deleted:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {episode_id}")
    click.echo(
        f"{result.before / _GB:.3f} GB before, {result.after / _GB:.3f} GB after, budget {budget_gb:g} GB; "
        f"kept: {result.flagged_bytes / _GB:.3f} GB flagged, {result.unsynced_bytes / _GB:.3f} GB not synced"
        + (f", {result.aside_bytes / _GB:.3f} GB in damaged/ and incoming/" if result.aside_bytes else "")
    )
    for episode_id in result.failed:
        say(f"{episode_id} cannot be deleted: check the disk and its permissions")
    if result.over:
        click.echo(f"still {result.over / _GB:.3f} GB over: sync episodes elsewhere, or allow more")
