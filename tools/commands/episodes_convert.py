"""`ratchet episodes convert`: LeRobot v2.1 to v3.0."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from episodes.lerobot.convert import ConvertOptions, ConvertProgress, convert_v30
from episodes.lerobot.encode import VideoFormat
from episodes.lerobot.plan import Limits
from episodes.lerobot.report import ConversionReport
from tools.console import disk_errors, say, show_json, show_table
from tools.options import PATH, Indices, json_flag
from tools.progress import bar


@click.command(
    "convert",
    epilog="\b\nExamples:\n"
    "  ratchet episodes convert old new --to v3.0\n"
    "  ratchet episodes convert grown new --to v3.0        # adds the episodes that new does not have",
)
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("target", metavar="DST", type=PATH)
@click.option("--to", type=click.Choice(["v3.0"]), default="v3.0", show_default=True)
@click.option("--episodes", "chosen", type=Indices(), help="Which episodes, such as 0-15,18 [default: all].")
@click.option(
    "--encode", type=click.Choice(["av1", "h264"]), help="Encode videos again [default: copy them]."
)
@click.option("--crf", type=click.IntRange(0, 63), default=30, show_default=True, help="With --encode.")
@click.option("--data-mb", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Size at which a data file ends.")  # fmt: skip
@click.option("--video-mb", type=click.IntRange(1, 10_000), default=200, show_default=True,
              help="Size at which a video file ends.")  # fmt: skip
@click.option("--allow-missing-video", is_flag=True, help="Leave out cameras whose videos are missing.")
@click.option("--workers", type=click.IntRange(1, 64), help="Files written at a time [default: one a core].")
@json_flag
def command(
    source: Path,
    target: Path,
    to: str,
    chosen: list[int] | None,
    encode: Any,
    crf: int,
    data_mb: int,
    video_mb: int,
    allow_missing_video: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Convert the LeRobot v2.1 set SRC to v3.0 in DST, or add its new episodes to the set in DST.

    Videos are put end to end without encoding them again. May be interrupted and run again. What was
    written is read back and compared before it is published: rows, and the tables of videos, not pictures.
    """
    options = ConvertOptions(
        None if chosen is None else tuple(chosen), VideoFormat(encode, crf) if encode else None,
        allow_missing_video, Limits(data_mb, video_mb), workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    with disk_errors(target), bar("converting", 1, "episodes") as update:

        def progress(now: ConvertProgress) -> None:
            update(now.done, now.what, now.total)

        report = convert_v30(source, target, options, progress)
    if as_json:
        show_json(asdict(report))
    else:
        show_conversion(report)


def show_conversion(report: ConversionReport) -> None:
    """The verification report for a person: notes on stderr, the tables on stdout."""
    for line in (*report.notes, *report.repairs):
        say(f"note: {line}")
    for index, notes in report.episode_notes.items():
        say(f"episode {index}: {'; '.join(notes)}")
    resumed = f", {report.files_resumed} of them from an interrupted run" if report.files_resumed else ""
    already = f"; {len(report.skipped)} were there already" if report.skipped else ""
    click.echo(
        f"{len(report.episodes)} episodes in {report.files} files{resumed}, to {report.target}{already}"
    )
    if not report.episodes:
        return
    for key, frames in report.frames.items():
        click.echo(f"{key}: {frames} frames for {report.rows} rows, {report.dimensions.get(key, '')}")
    click.echo(f"timestamps are at most {report.timestamp_error_s * 1e6:.1f} µs off index/fps")
    click.echo(f"all {len(report.dimensions)} features are there, with the sizes info.json says")
    show_table(
        ["feature", "size", ">min", ">max", ">mean before", ">mean after", ">std before", ">std after",
         ">difference", ">missing", ">outliers", "first"],
        [
            [key, report.dimensions.get(key, ""), min(f.after["min"]), max(f.after["max"]),
             *(_mean(side[n]) for n in ("mean", "std") for side in (f.before, f.after)),
             f.max_difference, f.missing, f.outliers, f.outlier_first]
            for key, f in report.features.items()
        ],
    )  # fmt: skip
    click.echo(
        "the rows and the tables of the videos were read back and compared: they agree "
        f"(min, max, mean and std of every feature of every episode; {report.checked_s:.2f} s)"
    )
    if report.frames:
        click.echo(f"pictures were not decoded; `ratchet episodes lint {report.target}` does that")


def _mean(values: list[float]) -> float:
    """One figure for all columns of a feature."""
    return sum(values) / len(values)
