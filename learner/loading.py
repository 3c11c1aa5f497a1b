"""From the episode store to a data set: which steps, which frame belongs to which step, decoding.

Only the frames of steps that are kept are decoded, straight into their place.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from episodes.errors import StoreError
from episodes.reader import Episode, decode_jpeg
from learner.config import DataConfig
from learner.data import (
    F32,
    I64,
    SOURCE_INTERVENTION,
    SOURCE_TELEOP,
    U8,
    Dataset,
    Mask,
    allocate_images,
    cut_segments,
)
from learner.errors import DataError

log = logging.getLogger(__name__)

# A frame stamped this little after its tick still belongs to it: both are stamped by different threads.
_STAMP_SLACK_NS = 1_000_000


class ReadableStore(Protocol):
    """The part of ``episodes.store.EpisodeStore`` that training needs."""

    def read(self, episode_id: str) -> Episode: ...

    def select(self, where: str) -> list[str]: ...


@dataclass(frozen=True)
class Steps:
    """The low-dimensional part of one episode, cut into segments of step indices.

    ``frame`` int64 per camera gives the newest frame of each step.
    """

    episode: Episode
    state: F32
    action: F32
    source: U8
    clone: Mask
    segments: list[I64]
    frame: dict[str, I64]

    @property
    def kept(self) -> I64:
        """Indices of all kept steps, in order."""
        return np.concatenate(self.segments) if self.segments else np.empty(0, np.int64)


def load_dataset(
    store: ReadableStore, episodes: Sequence[str], config: DataConfig, trim: bool = False
) -> Dataset:
    """The cloneable steps of ``episodes`` with their decoded frames.

    ``trim`` leaves pauses out (for corrections). Raises DataError when an episode lacks a stream,
    has a gap that ``config.gaps`` refuses, or none of its steps may be cloned in any of them.
    """
    if not episodes:
        raise DataError("the selection holds no episode", "check the SQL condition")
    try:
        parts = [read_steps(store.read(name), config, trim) for name in episodes]
        used = [p for p in parts if p.segments]
        if len(used) < len(parts):
            log.warning("data.nothing_to_clone episodes=%d of=%d", len(parts) - len(used), len(parts))
        if not used:
            raise DataError("no step of the selected episodes may be cloned", "select other episodes")
        return _assemble(used, config)
    except StoreError as error:
        raise DataError(f"an episode cannot be read: {error}", "run ratchet episodes verify") from error


def read_steps(episode: Episode, config: DataConfig, trim: bool) -> Steps:
    """Streams of one episode and which of its steps to keep. Raises DataError."""
    state, action = _stream(episode, "observation.state"), _stream(episode, "action")
    clock = episode.streams["observation.state"].t_ns
    if len(state) != len(action) or len(state) == 0:
        raise DataError(
            f"episode {episode.id} has {len(state)} states and {len(action)} actions", "leave it out"
        )
    for name, values in (("observation.state", state), ("action", action)):
        if not np.isfinite(values).all():
            raise DataError(f"episode {episode.id} has NaN or infinite values in {name}", "leave it out")
    tick_ns = 1e9 / episode.meta.fps
    breaks = np.flatnonzero(np.diff(clock) > config.max_gap_ticks * tick_ns) + 1
    source, clone = clone_mask(episode, clock)
    frame: dict[str, I64] = {}
    for camera in config.cameras or episode.cameras:
        frame[camera], stale = _align(episode, camera, clock, config.max_frame_age_ticks * tick_ns)
        if stale.any() and config.gaps == "refuse":
            raise DataError(
                f"episode {episode.id}: {int(stale.sum())} steps without a fresh frame of camera {camera}",
                "leave it out, or set gaps to split",
            )
        clone &= ~stale
    if len(breaks) and config.gaps == "refuse":
        raise DataError(
            f"episode {episode.id} has {len(breaks)} gaps, the first after step {int(breaks[0]) - 1}",
            "leave it out, or set gaps to split",
        )
    segments = cut_segments(state, action, clone, [int(b) for b in breaks], episode.meta.fps, config, trim)
    return Steps(episode, state, action, source, clone, segments, frame)


def clone_mask(episode: Episode, clock: I64) -> tuple[U8, Mask]:
    """(source uint8 (n,), which steps a person commanded bool (n,)).

    Imported episodes have no ``tick.source``: all of theirs count. Of episodes with interventions
    only the steps inside them count: never one from before the take-over.
    """
    spans = episode.interventions
    inside = np.zeros(len(clock), bool)
    for span in spans:
        inside |= (clock >= span.start_ns) & (clock <= span.end_ns)
    if "tick.source" not in episode.streams:
        source = np.full(len(clock), SOURCE_TELEOP, np.uint8)
        return source, inside if spans else np.ones(len(clock), bool)
    source = np.asarray(episode.streams["tick.source"].values, np.uint8).reshape(-1)
    if len(source) != len(clock):
        raise DataError(f"episode {episode.id}: tick.source has {len(source)} rows for {len(clock)} steps")
    if spans:
        return source, inside & (source == SOURCE_INTERVENTION)
    return source, (source == SOURCE_TELEOP) | (source == SOURCE_INTERVENTION)


def _stream(episode: Episode, name: str) -> F32:
    if name not in episode.streams:
        raise DataError(f"episode {episode.id} has no stream {name}", "leave it out")
    values = np.asarray(episode.streams[name].values, np.float32)
    return values.reshape(len(values), -1)


def _align(episode: Episode, camera: str, clock: I64, max_age_ns: float) -> tuple[I64, Mask]:
    """(newest frame of each step int64 (n,), steps whose newest frame is too old bool (n,))."""
    if camera not in episode.cameras:
        raise DataError(
            f"episode {episode.id} has no camera {camera}; it has {', '.join(episode.cameras) or 'none'}",
            "choose other cameras",
        )
    stamps = episode.frames(camera).t_ns
    if len(stamps) == 0:
        raise DataError(f"episode {episode.id} has no frame of camera {camera}", "leave it out")
    newest = np.searchsorted(stamps, clock + _STAMP_SLACK_NS, side="right") - 1
    newest = np.maximum(newest, 0).astype(np.int64)
    return newest, np.abs(clock - stamps[newest]) > max_age_ns


def _assemble(parts: Sequence[Steps], config: DataConfig) -> Dataset:
    cameras = list(parts[0].frame)
    shapes: dict[str, tuple[int, ...]] = {}
    for camera in cameras:
        described = parts[0].episode.meta.cameras[camera]
        shapes[camera] = (*(config.image_size or (described.height, described.width)), 3)
    total = sum(len(p.kept) for p in parts)
    images = allocate_images(total, shapes, config)
    first = parts[0]
    at = 0
    with ThreadPoolExecutor(config.decode_threads) as pool:
        for part in parts:
            if (part.state.shape[1], part.action.shape[1]) != (first.state.shape[1], first.action.shape[1]):
                raise DataError(
                    f"episode {part.episode.id} has other joints than {first.episode.id}", "select one robot"
                )
            for camera in cameras:
                _decode_into(images[camera], at, part, camera, pool)
            at += len(part.kept)
    return Dataset(
        np.concatenate([p.state[p.kept] for p in parts]),
        np.concatenate([p.action[p.kept] for p in parts]),
        images,
        [len(s) for p in parts for s in p.segments],
        [p.episode.id for p in parts for _ in p.segments],
    )


def _decode_into(out: U8, at: int, part: Steps, camera: str, pool: ThreadPoolExecutor) -> None:
    if camera not in part.frame:
        raise DataError(f"episode {part.episode.id} has no camera {camera}", "choose other cameras")
    frames = part.frame[camera][part.kept]
    jpegs = part.episode.frames(camera).jpegs()
    height, width = out.shape[1:3]

    def decode(row: int) -> None:
        image = decode_jpeg(jpegs[int(frames[row])])
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        out[at + row] = image

    for _ in pool.map(decode, range(len(frames))):
        pass
