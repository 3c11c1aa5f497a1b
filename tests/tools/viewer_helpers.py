"""A store worth looking at, and the viewer running over it in a thread."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig
from tools.viewer.app import Viewer

TICK_NS = 33_333_333
ORIGIN_NS = 5_000_000_000
TICKS = 90
HEIGHT, WIDTH = 48, 64
LOST = (40, 41, 42, 43, 44, 45)  # frames of "front" that never came
REPEATED = 20
NAMES = tuple(f"{j}.pos" for j in ("shoulder_pan", "elbow_flex", "gripper"))


def record(
    store: EpisodeStore,
    name: str,
    *,
    outcome: Any = "success",
    cameras: tuple[str, ...] = ("front", "wrist"),
    flags: tuple[tuple[str, int, int], ...] = (),
    takeover: tuple[int, int] | None = None,
    ticks: int = TICKS,
) -> None:
    """An episode of sines; the brightness of its pictures is the number of their tick."""
    three = {"shape": (3,), "names": NAMES}
    spec = EpisodeSpec(
        task="put the cube in the zone",
        kind="rollout",
        streams=(
            StreamSpec(name="observation.state", unit="rad", **three),
            StreamSpec(name="action", unit="rad", **three),
            StreamSpec(name="action.asked", unit="rad", **three),
            StreamSpec(name="observation.effort", unit="A", **three),
            StreamSpec(name="observation.temperature", unit="°C", **three),
            StreamSpec(name="observation.velocity", unit="rad/s", **three),
            StreamSpec(name="tick.source", dtype="uint8"),
            StreamSpec(name="tick.lateness_ms", unit="ms"),
        ),
        cameras=tuple(CameraSpec(name=c, height=HEIGHT, width=WIDTH) for c in cameras),
        provenance={"robot": "bench"},
    )
    # The clock of the samples is not this machine's: nothing may be counted from started_ns.
    writer = store.begin(spec, episode_id=name, config=WriterConfig(wait_when_full=True))
    for tick in range(ticks):
        t_ns = ORIGIN_NS + tick * TICK_NS
        wave = np.sin(tick / 15 + np.arange(3))
        taken = takeover is not None and takeover[0] <= tick < takeover[1]
        for stream, value in (
            ("observation.state", wave), ("action", wave + 0.1), ("action.asked", wave + 0.15),
            ("observation.effort", np.abs(wave)), ("observation.temperature", wave + 30),
            ("observation.velocity", wave), ("tick.source", 3 if taken else 2),
            ("tick.lateness_ms", tick % 3),
        ):  # fmt: skip
            writer.append(stream, t_ns, tick, value)
        for camera in cameras:
            if camera == "front" and tick in LOST:
                continue
            shade = np.full((HEIGHT, WIDTH, 3), 2 * tick + 20, np.uint8)
            shade[:, : WIDTH // 2, 0] = 250
            writer.append_frame(camera, t_ns, tick, shade, repeated=tick == REPEATED)
    for kind, start, end in flags:
        writer.flag(kind, ORIGIN_NS + start * TICK_NS, ORIGIN_NS + end * TICK_NS, 0.75,
                    {"joint": "elbow_flex", "limit": 0.5, "worst": float("nan")})  # fmt: skip
    if takeover is not None:
        start, end = (ORIGIN_NS + t * TICK_NS for t in takeover)
        writer.intervention(start, end, "operator")
    writer.end(outcome, "done").wait(30)


def viewer_store(path: Path) -> Path:
    """``good`` and ``corrected`` have flags, ``blind`` has no cameras, ``plain-N`` nothing special."""
    with EpisodeStore.open(path, durability="group") as store:
        for number in range(3):
            record(store, f"plain-{number}", ticks=10)
        record(store, "blind", cameras=(), outcome="failure", ticks=30)
        record(store, "good", flags=(("stall", 30, 45),))
        record(store, "corrected", outcome="failure", flags=(("unfamiliar", 15, 20), ("stall", 60, 70)),
               takeover=(60, 80))  # fmt: skip
    return path


class Looking:
    """A running viewer, and a browser of a few lines."""

    def __init__(self, viewer: Viewer, links: list[str]) -> None:
        self.viewer = viewer
        self.links = links
        self.host = f"127.0.0.1:{viewer.port}"
        self.cookie = ""

    def get(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body; ``headers`` with _ for -."""
        status, data, _ = self.exchange(path, method, body, **headers)
        return status, data

    def exchange(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers by lower-case name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.viewer.port, timeout=30)
        sent = {"Host": self.host, "Cookie": self.cookie} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def enter(self) -> None:
        """Use the newest link up, as a browser does."""
        url = urlsplit(self.links[-1])
        status, _, headers = self.exchange(f"{url.path}?{url.query}")
        assert status == 303
        self.cookie = headers["set-cookie"].split(";")[0]

    def ask(self, path: str) -> Any:
        """The answer's JSON."""
        status, data = self.get(f"/api/{path}")
        assert status == 200, data
        return json.loads(data)


@contextmanager
def looking(path: Path) -> Iterator[Looking]:
    """The viewer over the store at ``path``, in a thread with a loop of its own."""
    links: list[str] = []
    loop = asyncio.new_event_loop()
    with EpisodeStore.open(path, create=False, mode="r") as store:
        viewer = Viewer(store, links.append)
        loop.run_until_complete(viewer.start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield Looking(viewer, links)
        finally:
            asyncio.run_coroutine_threadsafe(viewer.stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()
