"""`ratchet episodes export`: episodes as a LeRobot set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from episodes.lerobot.encode import VideoFormat
from episodes.lerobot.exporter import ExportOptions, ExportReport, export_lerobot
from episodes.store import EpisodeStore
from tools.commands.episodes_convert import show_conversion
from tools.console import disk_errors, say, show_json
from tools.options import PATH, json_flag, store_option
from tools.progress import bar


@click.command(
    "export",
    epilog="\b\nExamples:\n"
    "  ratchet episodes export dataset --store episodes --where \"outcome = 'success'\"\n"
    "  ratchet episodes export dataset --store episodes --to v2.1 --pictures image",
)
@click.argument("target", metavar="DST", type=PATH)
@store_option
@click.option("--where", default="true", help="SQL condition over the catalogue.")
@click.option("--to", type=click.Choice(["v3.0", "v2.1"]), default="v3.0", show_default=True)
@click.option("--fps", type=click.IntRange(1, 1000), help="Rows a second [default: the episodes' ticks].")
@click.option("--fill", is_flag=True, help="Show the tick before again where ticks are missing.")
@click.option("--pictures", type=click.Choice(["video", "image"]), default="video", show_default=True,
              help="image: the stored JPEGs, not encoded again, in the data files.")  # fmt: skip
@click.option("--codec", type=click.Choice(["av1", "h264"]), default="av1", show_default=True)
@click.option("--crf", type=click.IntRange(0, 63), default=30, show_default=True, help="Video quality.")
@click.option("--stream", "streams", multiple=True, help="Which streams [default: observations and actions].")
@json_flag
def command(
    target: Path,
    store: Path,
    where: str,
    to: Any,
    fps: int | None,
    fill: bool,
    pictures: Any,
    codec: Any,
    crf: int,
    streams: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export episodes to DST as a LeRobot set; v3.0 may also add to a set that is there.

    A row is a tick; its timestamp is index / fps as LeRobot has it, the real times are kept in
    capture_time_ns. May be interrupted and run again.
    """
    options = ExportOptions(to, fps, fill, pictures, VideoFormat(codec, crf), streams or None)
    with disk_errors(target), EpisodeStore.open(store, create=False, mode="r") as opened:
        ids = opened.select(where)
        with bar("exporting", max(1, len(ids)), "episodes") as update:

            def progress(done: int, total: int, what: str) -> None:
                update(done, what, total)

            report = export_lerobot(opened, ids, target, options, progress)
    if as_json:
        show_json(asdict(report))
        return
    _show(report, target)


def _show(report: ExportReport, target: Path) -> None:
    for episode_id, notes in report.notes.items():
        say(f"{episode_id}: {'; '.join(notes)}")
    there = f"; {len(report.skipped)} were there already" if report.skipped else ""
    click.echo(
        f"exported {len(report.episodes)} episodes, {report.rows} rows, {report.frames} pictures, "
        f"to {target}{there}"
    )
    if report.reused:
        click.echo(f"{report.reused} of them were made by an export that was interrupted")
    if report.conversion is not None:
        show_conversion(report.conversion)
