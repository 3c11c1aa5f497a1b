"""From the episode store to a data set: which steps, which frame belongs to which step, decoding.

Only the frames of steps that are kept are decoded, straight into their place.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from episodes.errors import StoreError
from episodes.reader import Episode
from learner.config import DataConfig
from learner.data import SOURCE_INTERVENTION, SOURCE_TELEOP, Dataset, cut_segments
from learner.errors import DataError
from learner.loader.batch import F32, I64, U8, Mask, Window
from learner.loader.cache import DecodedCache
from learner.loader.pictures import CachedPictures, HeldPictures, Pictures, StoredPictures
from learner.loader.table import Table, TablePart, lay_out

log = logging.getLogger(__name__)

# A frame stamped this little after its tick still belongs to it: both are stamped by different threads.
_STAMP_SLACK_NS = 1_000_000


_TELL = "leave it out, or set gaps to split"


class ReadableStore(Protocol):
    """The part of ``episodes.store.EpisodeStore`` that training needs."""

    def read(self, episode_id: str) -> Episode: ...

    def select(self, where: str) -> list[str]: ...


@dataclass(frozen=True)
class Steps:
    """The low-dimensional part of one episode, cut into segments of step indices.

    ``frame`` int64 per camera gives the newest frame of each step. A step at ``breaks`` does not directly
    follow the one before, or one of the two has an outdated picture.
    """

    episode: Episode
    state: F32
    action: F32
    source: U8
    clone: Mask
    segments: list[I64]
    breaks: I64
    frame: dict[str, I64]

    @property
    def kept(self) -> I64:
        """Indices of all kept steps, in order."""
        return np.concatenate(self.segments) if self.segments else np.empty(0, np.int64)


def load_dataset(
    store: ReadableStore, episodes: Sequence[str], config: DataConfig, trim: bool = False, chunk: int = 1
) -> Dataset:
    """The cloneable steps of ``episodes`` with their decoded frames.

    ``trim`` leaves pauses out (for corrections). ``dataset[i]`` shows ``config.history`` observations and
    the next ``chunk`` actions. Raises DataError when an episode lacks a stream,
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
        return _assemble(used, config, chunk)
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
    outdated = np.zeros(len(clock), bool)
    for camera in config.cameras or episode.cameras:
        frame[camera], late = _align(episode, camera, clock, config.max_frame_age_ticks * tick_ns)
        if late.any() and config.gaps == "refuse":
            raise DataError(
                f"episode {episode.id}: {int(late.sum())} steps without a fresh frame of camera {camera}, "
                f"the first is step {int(np.flatnonzero(late)[0])}",
                _TELL,
            )
        outdated |= late
    if config.gaps == "refuse":
        _refuse_gaps(episode, breaks, frame)
    if config.gaps == "accept":
        breaks, outdated = breaks[:0], np.zeros(len(clock), bool)
    clone &= ~outdated
    segments = cut_segments(state, action, clone, [int(b) for b in breaks], episode.meta.fps, config, trim)
    edges = np.flatnonzero(np.diff(outdated.astype(np.int8))) + 1
    return Steps(episode, state, action, source, clone, segments, np.union1d(breaks, edges), frame)


def _refuse_gaps(episode: Episode, breaks: I64, frame: Mapping[str, I64]) -> None:
    """Raises DataError for a step that is missing, or samples that the recorder says it dropped."""
    if len(breaks):
        raise DataError(
            f"episode {episode.id} has {len(breaks)} gaps, the first after step {int(breaks[0]) - 1}", _TELL
        )
    for name in ("observation.state", "action", *frame):
        if name in episode.meta.drops:
            raise DataError(
                f"episode {episode.id}: the recorder dropped {episode.meta.drops[name].count} of {name}",
                _TELL,
            )


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
    """(newest frame of each step int64 (n,), steps for which it is outdated bool (n,)).

    Outdated: older than ``max_age_ns``, or one that came after it was lost and should have been there by
    then. When that was is told by the sequence numbers, a camera that always skips as many as another's
    own pace.
    """
    if camera not in episode.cameras:
        raise DataError(
            f"episode {episode.id} has no camera {camera}; it has {', '.join(episode.cameras) or 'none'}",
            "choose other cameras",
        )
    frames = episode.frames(camera)
    stamps = frames.t_ns
    if len(stamps) == 0:
        raise DataError(f"episode {episode.id} has no frame of camera {camera}", "leave it out")
    newest = np.searchsorted(stamps, clock + _STAMP_SLACK_NS, side="right") - 1
    newest = np.maximum(newest, 0).astype(np.int64)
    late = np.abs(clock - stamps[newest]) > max_age_ns
    if len(stamps) > 1:
        skipped = np.diff(frames.seq)
        pace = max(1, int(np.median(skipped)))
        due = stamps[:-1] + np.diff(stamps) * (pace / np.maximum(skipped, 1))
        due[skipped <= pace] = np.iinfo(np.int64).max
        late |= np.append(due, np.inf)[newest] <= clock + _STAMP_SLACK_NS
    return newest, late


def _assemble(parts: Sequence[Steps], config: DataConfig, chunk: int) -> Dataset:
    first = parts[0]
    cameras = tuple(first.frame)
    sizes: dict[str, tuple[int, int]] = {}
    for part in parts:
        if (part.state.shape[1], part.action.shape[1]) != (first.state.shape[1], first.action.shape[1]):
            raise DataError(
                f"episode {part.episode.id} has other joints than {first.episode.id}", "select one robot"
            )
        for camera in cameras:
            if camera not in part.frame:
                raise DataError(f"episode {part.episode.id} has no camera {camera}", "choose other cameras")
            described = part.episode.meta.cameras[camera]
            stored = (described.height, described.width)
            if sizes.setdefault(camera, config.image_size or stored) != (config.image_size or stored):
                raise DataError(
                    f"camera {camera} of episode {part.episode.id} has {stored} pixels, of "
                    f"{first.episode.id} {sizes[camera]}",
                    "set image_size",
                )
    table = lay_out(
        [
            TablePart(
                p.episode.id, p.state, p.action, p.segments, p.frame, p.breaks,
                {camera: p.episode.meta.cameras[camera].frames for camera in cameras},
            )
            for p in parts
        ]
    )  # fmt: skip
    source = StoredPictures([p.episode for p in parts], sizes)
    return Dataset(table, choose_pictures(source, table, config), Window(chunk, config.history))


def choose_pictures(source: StoredPictures, table: Table, config: DataConfig) -> Pictures:
    """Held in memory when they fit; else decoded when asked for, through the cache if there is one."""
    seen = table.row if config.history == 1 else _with_history(table, config.history)
    numbers = {camera: np.unique(of[seen]) for camera, of in table.picture.items()}
    wanted = sum(len(n) * math.prod(source.sizes[c]) * 3 for c, n in numbers.items())
    if wanted <= config.ram_gib * 2**30:
        return HeldPictures.filled(source, numbers, config.decode_threads)
    if config.scratch is None:
        log.info("data.decoded_when_asked_for gib=%.1f", wanted / 2**30)
        return source
    cached = CachedPictures(source, DecodedCache(config.scratch, int(config.cache_gib * 2**30)))
    log.info("data.cached gib=%.1f share=%.2f folder=%s", wanted / 2**30, cached.share, config.scratch)
    return cached


def _with_history(table: Table, history: int) -> I64:
    """Every observation that a sample or its history shows."""
    past = table.row[:, None] + np.arange(1 - history, 1)
    return np.unique(np.maximum(past, table.first[table.row][:, None]))
