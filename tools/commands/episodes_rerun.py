"""`ratchet episodes rerun`: episodes as recordings for the Rerun viewer."""

from __future__ import annotations

from pathlib import Path

import click

from episodes.store import EpisodeStore
from tools.console import say
from tools.finding import full_id
from tools.options import PATH, store_option
from tools.progress import bar

EXAMPLES = """
\b
Example:
  ratchet episodes rerun 20260101-120000 --store episodes --out episode.rrd
"""


@click.command("rerun", epilog=EXAMPLES)
@click.argument("episode_id", metavar="ID")
@store_option
@click.option("--out", type=PATH, help="The file to write [default: ID.rrd].")
def rerun(episode_id: str, store: Path, out: Path | None) -> None:
    """Export an episode for Rerun: pictures as stored, joints, commands, flags, on capture time.

    Needs rerun-sdk, which is not installed with ratchet.
    """
    from tools.viewer.rerun_export import export  # the SDK is large and an extra

    with EpisodeStore.open(store, create=False, mode="r") as opened:
        episode = opened.read(full_id(opened, episode_id))
        target = out or Path(f"{episode.id}.rrd")
        frames = sum(camera.frames for camera in episode.meta.cameras.values())
        with bar("exporting", max(1, frames), "frames") as update:
            export(episode, target, lambda done: update(done, ""))
    say(f"open it with: rerun {target}")
    click.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {frames} frames")
