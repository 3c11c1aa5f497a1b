"""`ratchet bench loader`: random training samples a second, beside the decoder alone and beside LeRobot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from episodes.spec import CameraSpec, EpisodeSpec, PictureCodec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig
from tools.bench.common import show, work_folder
from tools.bench.pictures import HEIGHT, WIDTH, Picture, scene, videos
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH, FiniteRange, json_flag

CAMERAS = ("front", "wrist")
FPS = 30
_PICTURES = 96
_SIZES = {"full": (HEIGHT, WIDTH), "training": (HEIGHT // 2, WIDTH // 2)}
_BUDGETS = {"full": 5.0, "training": 10.0}
CACHED_BUDGET = 30.0
DECODER_BUDGET = 0.8
_ROOT = Path(__file__).resolve().parents[2]


@click.command(epilog="\b\nExample:\n  ratchet bench loader --lerobot ~/lerobot/bin/python --json")
@click.option("--seconds", type=FiniteRange(0.2, 600.0), default=8.0, show_default=True, help="Each figure.")
@click.option("--episodes", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option(
    "--frames", type=click.IntRange(10, 100_000), default=300, show_default=True, help="An episode."
)
@click.option("--videos", "folder", type=PATH, help="Pictures of these 640x480 videos [default: the scene].")
@click.option("--dir", "where", type=PATH, help="A folder on the disk to be tried [default: /tmp].")
@click.option(
    "--lerobot", type=PATH, help="A Python that has LeRobot 0.4.4: its figure on the same pictures."
)
@json_flag
def command(
    seconds: float,
    episodes: int,
    frames: int,
    folder: Path | None,
    where: Path | None,
    lerobot: Path | None,
    as_json: bool,
) -> None:
    """Draw random samples (two 640x480 cameras, 100 actions) on two cores, from a store made for it.

    At full size (the figures at the top), and decoded to 320x240 for training. Each beside two threads
    that do nothing but decode, and from the cache of decoded pictures. Then once more out of H.264
    (``h264``), which has no decoder to be held against: a random picture costs half a group.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with work_folder("ratchet-loader-", where) as work:
        pictures = _pictures(folder, work)
        say(f"recording {episodes} episodes of {frames} frames")
        _record(work / "store", pictures, episodes, frames)
        figures: dict[str, Any] = {"cameras": len(CAMERAS), "episodes": episodes, "frames": frames}
        for name, size in _SIZES.items():
            say(f"loading at {size[1]}x{size[0]}")
            figures[name] = _measure(work / "store", size, seconds)
        say("one episode as H.264, loading at training size")
        _record(work / "h264", pictures, 1, frames, "h264")
        figures["h264"] = _measure(work / "h264", _SIZES["training"], seconds)
        if lerobot is not None:
            say("LeRobot: recording the same pictures, then drawing")
            figures["lerobot"] = _peer(lerobot, work, pictures, episodes, frames, seconds)
    show({**summary(figures), **figures, "budgets": judged(figures)}, as_json)


def _pictures(folder: Path | None, work: Path) -> dict[str, list[Picture]]:
    if folder is None:
        return dict(zip(CAMERAS, scene(len(CAMERAS), _PICTURES, work / "scene"), strict=True))
    return dict(zip(CAMERAS, videos(len(CAMERAS), _PICTURES, folder), strict=True))


def _record(
    root: Path,
    pictures: dict[str, list[Picture]],
    episodes: int,
    frames: int,
    codec: PictureCodec = "jpeg",
) -> None:
    """As the recorder writes it, at the default quality."""
    spec = EpisodeSpec(
        task="bench",
        fps=FPS,
        streams=tuple(StreamSpec(name=n, shape=(6,), unit="rad") for n in ("observation.state", "action")),
        cameras=tuple(CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in CAMERAS),
        codec=codec,
    )
    with EpisodeStore.open(root, durability="group") as store:
        for episode in range(episodes):
            writer = store.begin(spec, started_ns=0, config=WriterConfig(wait_when_full=True))
            for frame in range(frames):
                t_ns = round(frame / FPS * 1e9)
                values = np.full(6, np.sin(frame / FPS + episode), np.float32)
                for name in ("observation.state", "action"):
                    writer.append(name, t_ns, frame, values)
                for camera, shown in pictures.items():
                    writer.append_frame(camera, t_ns, frame, shown[frame % len(shown)])
            writer.end("success", "bench").wait()


def _measure(store: Path, size: tuple[int, int], seconds: float) -> dict[str, float]:
    numbers = ["--size", str(size[0]), str(size[1]), "--seconds", str(seconds)]
    return _json([sys.executable, "-m", "tools.bench.loader_part", str(store), *numbers], _ROOT)


def _peer(
    python: Path, work: Path, pictures: dict[str, list[Picture]], episodes: int, frames: int, seconds: float
) -> dict[str, float]:
    np.savez(work / "pictures.npz", **{name: np.stack(shown) for name, shown in pictures.items()})  # type: ignore[arg-type]
    script = Path(__file__).with_name("loader_peer.py")
    numbers = [str(episodes), str(frames), str(seconds)]
    return _json([str(python), str(script), str(work), *numbers], work)


def _json(command: list[str], where: Path) -> dict[str, float]:
    """The last line that ``command`` prints, as JSON. Raises UsageError with its last words when it fails."""
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        raise UsageError(f"{' '.join(command[:3])} failed: {last}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(figures: dict[str, Any]) -> dict[str, float]:
    """The figures at full size, and the most memory that either size took."""
    full = figures["full"]
    names = ("samples_per_s", "samples_per_s_cached", "decoder_limit_per_s", "first_batch_s")
    memory = {name: max(figures[s][name] for s in _SIZES) for name in ("rss_mb", "rss_cached_mb")}
    return {**{name: full[name] for name in names}, **memory}


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """Each budget with what was reached, and whether it is held; ratios to LeRobot where it was run.

    LeRobot's figure is its better one, at full size: it has no other.
    """
    peer = max(figures["lerobot"].values()) if "lerobot" in figures else None
    out: dict[str, Any] = {}
    for name, times in _BUDGETS.items():
        own = figures[name]
        out[f"{name}_of_decoder"] = _held(own["of_decoder"], DECODER_BUDGET)
        if peer:
            out[f"{name}_times_lerobot"] = _held(own["samples_per_s"] / peer, times)
            out[f"{name}_cached_times_lerobot"] = _held(own["samples_per_s_cached"] / peer, CACHED_BUDGET)
    return out


def _held(reached: float, budget: float) -> dict[str, Any]:
    return {"reached": round(reached, 3), "budget": budget, "held": reached >= budget}
