"""`ratchet episodes view`: look at recorded episodes in a browser on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import webbrowser
from pathlib import Path
from urllib.parse import quote

import click

from episodes.store import EpisodeStore
from tools.console import say
from tools.finding import full_id
from tools.options import store_option
from tools.viewer.app import Viewer

EXAMPLES = """
\b
Examples:
  ratchet episodes view --store episodes
  ratchet episodes view 20260101-120000 --store episodes --compare 20260102
  ratchet episodes view --store episodes --where "outcome = 'failure' and flagged"
  ssh -L 8642:127.0.0.1:8642 robot ratchet episodes view --store episodes --port 8642
"""


@click.command("view", epilog=EXAMPLES)
@click.argument("episode_id", metavar="[ID]", required=False)
@store_option
@click.option("--compare", metavar="ID", help="Show this episode beside it.")
@click.option("--where", default="", help="SQL condition over the catalogue to begin with.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Listen here [default: any free port]."
)
@click.option("--open", "browser", is_flag=True, help="Open the page in this machine's browser.")
def view(
    episode_id: str | None, store: Path, compare: str | None, where: str, port: int, browser: bool
) -> None:
    """Play episodes in a local page: cameras in step with joints, commands, flags and take-overs.

    The page is served on loopback only, reads the store and changes nothing. The link works once;
    a new one is shown when it was used. Ctrl-C ends it.
    """
    with EpisodeStore.open(store, create=False, mode="r") as opened:
        wanted = {
            "where": where,
            "a": full_id(opened, episode_id) if episode_id else "",
            "b": full_id(opened, compare) if compare else "",
        }
        fragment = "&".join(f"{key}={quote(value)}" for key, value in wanted.items() if value)
        asyncio.run(_serve(opened, port, f"#{fragment}" if fragment else "", browser))


async def _serve(store: EpisodeStore, port: int, fragment: str, browser: bool) -> None:
    links: list[str] = []

    def announce(link: str) -> None:
        links.append(link + fragment)
        if len(links) == 1:
            click.echo(links[0])
        else:
            say(f"in use; for another browser: {links[-1]}")

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, over.set)
    viewer = Viewer(store, announce, port)
    await viewer.start()
    say("Ctrl-C ends it")
    if browser:
        await asyncio.to_thread(webbrowser.open, links[0])
    try:
        await over.wait()
    finally:
        await viewer.stop()
