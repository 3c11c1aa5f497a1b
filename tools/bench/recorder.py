"""`ratchet bench recorder`: what the store takes on two cores, and how soon it is ready again."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from episodes.ref import EpisodeRef
from episodes.spec import CameraSpec, EpisodeMeta, EpisodeSpec, PictureCodec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter
from tools.bench.codecs import LEROBOT, h264, jpeg, psnr_db, video
from tools.bench.common import quantile, show, work_folder
from tools.bench.pictures import HEIGHT, WIDTH, Picture, scene, videos
from tools.options import PATH, FiniteRange, json_flag
from tools.progress import Update, bar

JOINT_HZ = 200
END_LIMIT_MS = 50.0
SIZE_LIMIT = 1.5
_JOINT_STREAMS = ("bus.position", "bus.velocity", "bus.effort", "bus.goal")
_SHORT_S = 2.0
_PICTURES = 48
_COMPARED = 24


@dataclass(slots=True)
class _Run:
    """Episodes one after the other into one store, and how long each end took."""

    store: EpisodeStore
    spec: EpisodeSpec
    pictures: list[list[Picture]]
    fps: int
    end_ms: list[float] = field(default_factory=list)
    refs: list[EpisodeRef] = field(default_factory=list)
    fed: int = 0
    late_ms: list[float] = field(default_factory=list)

    def episodes(self, lengths: list[float], update: Update) -> None:
        """Record episodes of these lengths in seconds; the end of each counts until the next one runs."""
        done = 0.0
        writer = self.store.begin(self.spec)
        for number, seconds in enumerate(lengths):
            self._feed(writer, seconds, lambda s, before=done: update(before + s))
            done += seconds
            began = time.perf_counter()
            self.refs.append(writer.end("success", "bench"))
            if number + 1 < len(lengths):
                writer = self.store.begin(self.spec)
            self.end_ms.append((time.perf_counter() - began) * 1e3)

    def _feed(self, writer: EpisodeWriter, seconds: float, update: Update) -> None:
        """Joints at 200 Hz, a picture of each camera at ``fps``, all to absolute deadlines."""
        begun, frame = time.perf_counter(), 0
        values = np.zeros(6, np.float32)
        for step in range(round(seconds * JOINT_HZ)):
            deadline = begun + step / JOINT_HZ
            time.sleep(max(0.0, deadline - time.perf_counter()))
            self.late_ms.append((time.perf_counter() - deadline) * 1e3)
            t_ns = time.monotonic_ns()
            for name in _JOINT_STREAMS:
                writer.append(name, t_ns, step, values)
            if step * self.fps >= frame * JOINT_HZ:
                for camera, shown in zip(self.spec.cameras, self.pictures, strict=True):
                    writer.append_frame(camera.name, t_ns, frame, shown[frame % len(shown)])
                    self.fed += 1
                frame += 1
                if frame % self.fps == 0:
                    update(frame / self.fps)


def _spec(cameras: int, fps: int, codec: PictureCodec, quality: int, crf: int) -> EpisodeSpec:
    return EpisodeSpec(
        task="bench",
        fps=fps,
        streams=tuple(StreamSpec(name=name, shape=(6,)) for name in _JOINT_STREAMS),
        cameras=tuple(CameraSpec(name=f"camera{i}", height=HEIGHT, width=WIDTH) for i in range(cameras)),
        codec=codec,
        jpeg_quality=quality,
        crf=crf,
    )


@click.command(epilog="\b\nExample:\n  ratchet bench recorder --seconds 600 --json")
@click.option("--seconds", type=FiniteRange(2.0, 7200.0), default=60.0, show_default=True)
@click.option("--cameras", type=click.IntRange(1, 8), default=4, show_default=True)
@click.option("--fps", type=click.IntRange(1, 100), default=30, show_default=True)
@click.option("--quality", type=click.IntRange(50, 100), default=95, show_default=True, help="Of the JPEGs.")
@click.option(
    "--codec", type=click.Choice(["jpeg", "h264"]), default="jpeg", show_default=True, help="Of the pictures."
)
@click.option("--crf", type=click.IntRange(10, 40), default=22, show_default=True, help="Of the H.264.")
@click.option("--short", type=click.IntRange(1, 1000), default=5, show_default=True, help="Short episodes.")
@click.option("--videos", "folder", type=PATH, help="Record pictures of these 640x480 videos [the scene].")
@click.option("--dir", "where", type=PATH, help="A folder on the disk to be tried [default: /tmp].")
@json_flag
def command(
    seconds: float,
    cameras: int,
    fps: int,
    quality: int,
    codec: PictureCodec,
    crf: int,
    short: int,
    folder: Path | None,
    where: Path | None,
    as_json: bool,
) -> None:
    """Record one episode of SECONDS and some short ones in real time, on two cores.

    Cameras are 640x480, joints come at 200 Hz. Bytes and PSNR stand beside those of LeRobot's default
    (AV1, crf 30, a key frame every 2) on the same pictures in the same run.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    cv2.setNumThreads(1)
    with work_folder("ratchet-recorder-", where) as work:
        pictures = (
            scene(cameras, _PICTURES, work / "scene")
            if folder is None
            else videos(cameras, _PICTURES, folder)
        )
        store = EpisodeStore.open(work / "store")
        run = _Run(store, _spec(cameras, fps, codec, quality, crf), pictures, fps)
        lengths = [_SHORT_S] * short + [seconds] + [_SHORT_S] * short
        cpu, wall = time.process_time(), time.perf_counter()
        with bar("recording", round(sum(lengths)), "s") as update:
            run.episodes(lengths, update)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        metas = [ref.wait(600) for ref in run.refs]
        quality_db = _psnr(store, metas[0].id, pictures)
        store.close()
    figures = _figures(run, metas, quality_db, cpu / wall)
    show({**figures, **_compared(pictures, figures)}, as_json)


def _figures(run: _Run, metas: list[EpisodeMeta], quality_db: float, cpu: float) -> dict[str, Any]:
    cameras = [camera for meta in metas for camera in meta.cameras.values()]
    frames = sum(camera.frames for camera in cameras)
    lost = run.fed - frames
    return {
        "cameras": len(run.spec.cameras),
        "codec": run.spec.codec,
        "fps": run.fps,
        "seconds": round(sum(meta.seconds for meta in metas), 1),
        "longest_s": round(max(meta.seconds for meta in metas), 1),
        "frames": frames,
        "dropped": lost,
        "rows_dropped": sum(d.count for m in metas for d in m.drops.values()) - lost,
        "repeated": sum(camera.repeated for camera in cameras),
        "bytes_per_frame": round(sum(camera.bytes for camera in cameras) / max(1, frames)),
        "psnr_db": quality_db,
        "cpu_percent": round(cpu * 100, 1),
        "feed_late_ms_p99": quantile(run.late_ms, 99),
        "end_ms_p50": quantile(run.end_ms, 50),
        "end_ms_max": quantile(run.end_ms, 100),
        "budget": {"dropped": 0, "end_ms": END_LIMIT_MS},
        "held": lost == 0 and quantile(run.end_ms, 100) < END_LIMIT_MS,
    }


def _psnr(store: EpisodeStore, episode_id: str, pictures: list[list[Picture]]) -> float:
    """Of what was stored against what was handed in, over the first pictures of every camera."""
    episode = store.read(episode_id)
    found = []
    for camera, shown in zip(episode.cameras, pictures, strict=True):
        frames = episode.frames(camera)
        for index in range(0, len(frames), 5):
            found.append(psnr_db(frames[index], shown[int(frames.seq[index]) % len(shown)]))
    return round(float(np.mean(found)), 2)


def _compared(pictures: list[list[Picture]], figures: dict[str, Any]) -> dict[str, Any]:
    """The same pictures in other forms; each camera is a video of its own."""
    shown = [p[:_COMPARED] for p in pictures]
    lerobot = _mean([video(p, *LEROBOT) for p in shown])
    forms = {f"h264_crf_{crf}": _mean([h264(p, crf) for p in shown]) for crf in (18, 20, 22, 24)}
    forms |= {f"jpeg_{q}": _mean([jpeg(p, q) for p in shown]) for q in (80, 90, 95)}
    size = None if lerobot is None else round(figures["bytes_per_frame"] / lerobot["bytes_per_frame"], 2)
    return {"lerobot_av1": lerobot, "size_over_lerobot": size, "size_budget": SIZE_LIMIT, "others": forms}


def _mean(rows: list[dict[str, float] | None]) -> dict[str, float] | None:
    found = [row for row in rows if row is not None]
    if not found:
        return None
    return {key: round(float(np.mean([row[key] for row in found])), 2) for key in found[0]}
