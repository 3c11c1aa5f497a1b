"""`ratchet episodes`: what the episode store holds, whether it is sound, and getting datasets into it."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from episodes.lerobot.importer import ImportProgress, ImportReport, import_lerobot
from episodes.lerobot.layout import Dataset
from episodes.reader import Episode
from episodes.recovery import RecoveryReport
from episodes.spec import StreamMeta
from episodes.store import EpisodeStore
from tools.commands.episodes_convert import command as convert
from tools.commands.episodes_export import command as export
from tools.commands.episodes_lint import command as lint_command
from tools.commands.episodes_prune import prune
from tools.commands.episodes_rerun import rerun
from tools.commands.episodes_sync import receive, sync
from tools.commands.episodes_view import view
from tools.console import disk_errors, say, show_fields, show_json, show_table
from tools.finding import first_sample_ns, full_id
from tools.options import PATH, FiniteRange, ImageSize, Indices, json_flag, store_option
from tools.progress import bar

EXAMPLES = """
\b
Examples:
  ratchet episodes ls --store episodes --where "outcome = 'success'"
  ratchet episodes import dataset --store episodes --image-size 96x128
  ratchet episodes verify --store episodes
"""
_LISTED = "id, task, kind, outcome, ticks, seconds, fps, robot, cameras, flags, interventions, recovered"


@click.group(epilog=EXAMPLES)
def episodes() -> None:
    """List, show, view, verify, recover, query and import recorded episodes."""


for _verb in (view, rerun, sync, receive, prune, convert, export, lint_command):
    episodes.add_command(_verb)


@episodes.command(epilog="\b\nExample:\n  ratchet episodes ls --store episodes --where \"kind = 'demo'\"")
@store_option
@click.option("--where", default="true", help="SQL condition, or a SELECT with a column of ids.")
@click.option("--limit", type=click.IntRange(1), help="Show only the newest so many.")
@json_flag
def ls(store: Path, where: str, limit: int | None, as_json: bool) -> None:
    """List episodes, the oldest first."""
    with _reader(store) as opened:
        chosen = set(opened.select(where))
        rows = opened.query(f"SELECT {_LISTED} FROM episodes ORDER BY started_wall, id")
    rows = [row for row in rows if row["id"] in chosen]
    shown = rows if limit is None else rows[-limit:]
    if as_json:
        show_json(shown)
        return
    columns = [f">{c}" if c in _NUMBERS else c for c in _LISTED.split(", ")]
    if shown:
        show_table(columns, [list(row.values()) for row in shown])
    seconds = sum(row["seconds"] or 0.0 for row in rows)
    say(f"{len(rows)} episodes, {seconds / 60:.1f} min" + (f", {len(shown)} shown" if shown != rows else ""))


@episodes.command(epilog="\b\nExample:\n  ratchet episodes show 20260101-120000-1a2b --store episodes")
@click.argument("episode_id", metavar="ID")
@store_option
@json_flag
def show(episode_id: str, store: Path, as_json: bool) -> None:
    """Show one episode: its streams, cameras, flags, take-overs, and where it comes from.

    ID may be cut short while it is still unmistakable.
    """
    with _reader(store) as opened:
        episode = opened.read(full_id(opened, episode_id))
    meta = episode.meta
    if as_json:
        show_json({**meta.model_dump(mode="json"), "digest": episode.digest})
        return
    _show_meta(episode)
    show_table(
        ["stream", "type", "unit", ">rows", ">missing", ">longest gap ms", "names"],
        [
            [
                n,
                f"{s.dtype}{list(s.shape) or ''}",
                s.unit,
                s.rows,
                s.missing,
                _ms(s.max_gap_ns),
                _row(s),
            ]
            for n, s in meta.streams.items()
        ],
    )
    show_table(
        ["camera", "size", ">frames", ">repeated", ">missing", ">longest gap ms", ">MB"],
        [
            [n, f"{c.height}x{c.width}", c.frames, c.repeated, c.missing, _ms(c.max_gap_ns), c.bytes / 1e6]
            for n, c in meta.cameras.items()
        ],
    )
    _show_spans(episode)


@episodes.command(epilog="\b\nExample:\n  ratchet episodes verify --store episodes")
@store_option
@click.option("--quick", is_flag=True, help="Look at names and sizes only, not at every byte.")
@json_flag
def verify(store: Path, quick: bool, as_json: bool) -> None:
    """Prove that published episodes are what was written. Exit code 1 when something is damaged."""
    with _reader(store) as opened:
        report = opened.verify(deep=not quick)
    if as_json:
        show_json({**asdict(report), "ok": report.ok})
    else:
        for damage in report.damages:
            click.echo(f"DAMAGED {damage}")
        how = "every byte read" if report.deep else "names and sizes only"
        click.echo(
            f"{report.episodes} episodes, {report.files} files, {report.bytes / 1e6:.1f} MB ({how}): "
            + ("all sound" if report.ok else f"{len(report.damages)} damaged")
        )
    if not report.ok:
        sys.exit(1)


@episodes.command(epilog="\b\nExample:\n  ratchet episodes recover --store episodes")
@store_option
@json_flag
def recover(store: Path, as_json: bool) -> None:
    """Put the store in order after a crash: finish interrupted episodes, rebuild the catalogue.

    Recording does this too whenever it opens the store. Exit code 1 when an episode could not be saved.
    """
    with EpisodeStore.open(store, create=False) as opened:
        report = opened.recovery
    if as_json:
        show_json({**asdict(report), "failed": {k: str(v) for k, v in report.failed.items()}})
    else:
        _show_recovery(report)
    if report.damaged or report.unreadable or report.failed or report.missing:
        sys.exit(1)


@episodes.command(
    epilog="\b\nExample:\n"
    '  ratchet episodes query "SELECT outcome, count(*) FROM episodes GROUP BY outcome" --store episodes'
)
@click.argument("sql")
@store_option
@click.option("--timeout", type=FiniteRange(0.001, 86400.0), default=60.0, show_default=True,
              help="Seconds after which it is broken off.")  # fmt: skip
@json_flag
def query(sql: str, store: Path, timeout: float, as_json: bool) -> None:
    """Run DuckDB SQL over the tables episodes, flags and interventions. Nothing can be changed.

    Ctrl-C breaks it off, too.
    """
    with _reader(store) as opened:
        rows = opened.query(sql, timeout)
    if as_json:
        show_json([{k: _finite(v) for k, v in row.items()} for row in rows])
    elif rows:
        numbers = {k for k, v in rows[0].items() if isinstance(v, int | float) and not isinstance(v, bool)}
        show_table([f">{c}" if c in numbers else c for c in rows[0]], [list(r.values()) for r in rows])
    else:
        say("no rows")


@episodes.command(
    "import",
    epilog="\b\nExamples:\n"
    "  ratchet episodes import dataset --store episodes --image-size 96x128\n"
    "  ratchet episodes import dataset --store episodes --episodes 0-15,18",
)
@click.argument("source", type=PATH)
@store_option
@click.option("--image-size", type=ImageSize(), help="Keep pictures at this size [default: as they are].")
@click.option("--episodes", "chosen", type=Indices(), help="Which episodes, such as 0-15,18 [default: all].")
@click.option("--outcome", type=click.Choice(["success", "failure", "unknown"]),
              help="Of all episodes [default: as Ratchet exported it; LeRobot records none].")  # fmt: skip
@click.option("--allow-missing-video", is_flag=True, help="Leave out cameras whose video is missing.")
@json_flag
def import_command(
    source: Path,
    store: Path,
    image_size: tuple[int, int] | None,
    chosen: list[int] | None,
    outcome: Any,
    allow_missing_video: bool,
    as_json: bool,
) -> None:
    """Import the LeRobot dataset (v2.1 or v3.0) in folder SOURCE.

    May be interrupted and run again: what is there already is skipped.
    """
    dataset = Dataset(source)
    wanted = sorted(dataset.episodes) if chosen is None else chosen
    frames = sum(dataset.episodes[i].length for i in wanted if i in dataset.episodes)
    pictures = max(1, len([f for f in dataset.features.values() if f.is_picture]))
    with (
        disk_errors(store),
        EpisodeStore.open(store) as opened,
        bar("importing", max(1, frames * pictures), "frames") as update,
    ):

        def progress(now: ImportProgress) -> None:
            update(now.frames, f"episode {now.done} of {now.total}")

        report = import_lerobot(
            source,
            opened,
            episodes=chosen,
            image_size=image_size,
            allow_missing_video=allow_missing_video,
            outcome=outcome,
            progress=progress,
        )
    if as_json:
        show_json(asdict(report))
        return
    _show_import(report, store)


_NUMBERS = {"ticks", "seconds", "fps", "flags", "interventions"}


def _reader(store: Path) -> EpisodeStore:
    return EpisodeStore.open(store, create=False, mode="r")


def _show_meta(episode: Episode) -> None:
    meta = episode.meta
    show_fields(
        {
            "id": meta.id,
            "task": meta.task,
            "kind": meta.kind,
            "outcome": f"{meta.outcome} ({meta.reason})",
            "started": meta.started_wall,
            "length": f"{meta.ticks} ticks at {meta.fps:g} Hz, {meta.seconds:.1f} s",
            "recovered": meta.recovered,
            "dropped": {name: d.count for name, d in meta.drops.items()} or "nothing",
            "provenance": meta.provenance,
            "digest": episode.digest,
        }
    )


def _show_spans(episode: Episode) -> None:
    meta, origin = episode.meta, first_sample_ns(episode)
    if meta.flags:
        show_table(
            ["flag", ">from s", ">to s", ">score", "evidence"],
            [[f.kind, _s(origin, f.start_ns), _s(origin, f.end_ns), f.score, f.evidence] for f in meta.flags],
        )
    if meta.interventions:
        show_table(
            ["take-over by", ">from s", ">to s"],
            [[i.by, _s(origin, i.start_ns), _s(origin, i.end_ns)] for i in meta.interventions],
        )


def _show_recovery(report: RecoveryReport) -> None:
    words = {
        "recovered": "interrupted, published with what had been committed",
        "completed": "had ended, published",
        "recatalogued": "added to the catalogue again",
        "damaged": "DAMAGED, moved to damaged/",
        "unreadable": "its journal CANNOT BE READ, moved to damaged/",
        "empty": "had begun, nothing was recorded yet; its journal is gone",
        "missing": "MISSING although the catalogue lists it",
    }
    for name, what in words.items():
        for episode_id in getattr(report, name):
            click.echo(f"{episode_id}: {what}")
    for episode_id, error in report.failed.items():
        click.echo(f"{episode_id}: NOT PUBLISHED: {error}")
    if report.partial_removed:
        click.echo(f"{report.partial_removed} half-written or half-deleted folders cleared away")
    if not report:
        click.echo("nothing to do: the store is in order")


def _show_import(report: ImportReport, store: Path) -> None:
    for warning in report.warnings:
        say(f"warning: {warning}")
    for index, notes in report.notes.items():
        say(f"episode {index}: {'; '.join(notes)}")
    already = f", {len(report.skipped)} were there already" if report.skipped else ""
    click.echo(f"imported {len(report.imported)} episodes, {report.frames} frames, into {store}{already}")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f}"


def _s(origin_ns: int, ns: int) -> str:
    return f"{(ns - origin_ns) / 1e9:.2f}"


def _row(stream: StreamMeta) -> str:
    return " ".join(stream.names)
