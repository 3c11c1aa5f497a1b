"""What an export will be, looked at before anything is written: streams, cameras, rate, tasks, labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from episodes.errors import StoreError
from episodes.lerobot.capture import REPEATED, SEQ, TIME
from episodes.lerobot.encode import VideoFormat, refuse_unknown
from episodes.lerobot.grid import tick_stream_name
from episodes.lerobot.job import IMAGE_PREFIXES
from episodes.lerobot.labels import COLUMNS
from episodes.lerobot.metadata import Feature
from episodes.lerobot.plan import Limits
from episodes.reader import Episode
from episodes.store import EpisodeStore


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """``fps``: rows a second (default: the episodes' own). ``fill``: repeat ticks where some are missing.
    ``pictures``: "video", or "image": the stored JPEGs in the data files, byte for byte.
    ``streams``: which (default: the actions and observations of every tick)."""

    to: Literal["v2.1", "v3.0"] = "v3.0"
    fps: int | None = None
    fill: bool = False
    pictures: Literal["video", "image"] = "video"
    video: VideoFormat = field(default_factory=VideoFormat)
    streams: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class ExportPlan:
    """``identities``: episode id → what it is recognised by in a set; ``tasks``: episode id → its task;
    ``features``, ``raw``: the columns, and more about them for info.json; ``labels``: columns made from
    outcome, flags and take-overs."""

    options: ExportOptions
    fps: int
    streams: tuple[str, ...]
    features: dict[str, Feature]
    raw: dict[str, Any]
    labels: tuple[str, ...]
    robot: str | None = None
    identities: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)

    def tasks_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Task text → number, in the order of the episodes."""
        return {text: n for n, text in enumerate(dict.fromkeys(self.tasks[i] for i in ids))}


def make_plan(store: EpisodeStore, ids: Sequence[str], options: ExportOptions) -> ExportPlan:
    """Look at every episode. Raises StoreError for the first that does not fit with the others."""
    if not ids:
        raise StoreError("no episode chosen", "see `ratchet episodes ls`")
    if options.pictures == "video":
        refuse_unknown(options.video)
    first = store.read(ids[0])
    fps = options.fps or round(first.meta.fps)
    streams = _streams(first, options)
    features, raw = _features(first, streams, options, fps)
    labels = tuple(c for c in COLUMNS if c not in streams)
    features |= {c: Feature(c, "bool", (1,), ()) for c in labels}
    plan = ExportPlan(options, fps, streams, features, raw, labels)
    robots = set()
    for episode_id in dict.fromkeys(ids):
        episode = store.read(episode_id)
        _refuse_unfit(episode, first, plan)
        plan.identities[episode_id] = f"{episode.id} {episode.digest}"
        plan.tasks[episode_id] = episode.meta.task
        robots.add(episode.meta.provenance.get("robot"))
    plan.robot = robots.pop() if len(robots) == 1 else None
    return plan


def _streams(first: Episode, options: ExportOptions) -> tuple[str, ...]:
    if options.streams is not None:
        return options.streams
    wanted = ("action", "observation", "next")
    return tuple(n for n in first.streams if n.split(".")[0] in wanted or first.meta.kind == "import")


def _features(
    episode: Episode, streams: tuple[str, ...], options: ExportOptions, fps: int
) -> tuple[dict[str, Feature], dict[str, Any]]:
    features: dict[str, Feature] = {}
    raw: dict[str, Any] = {}
    for name in streams:
        if name not in episode.meta.streams:
            raise StoreError(f"episode {episode.id} has no stream {name}", "see `ratchet episodes show`")
        meta = episode.meta.streams[name]
        features[name] = Feature(name, meta.dtype, tuple(meta.shape) or (1,), meta.names)
        raw[name] = {"names": list(meta.names) or None} | ({"unit": meta.unit} if meta.unit else {})
    own: list[tuple[str, str]] = [(TIME, "int64"), (SEQ, "int64"), (REPEATED, "bool")]
    for camera, seen in episode.meta.cameras.items():
        key = IMAGE_PREFIXES[0] + camera
        features[key] = Feature(key, options.pictures, (seen.height, seen.width, 3), ())
        if options.pictures == "video":
            raw[key] = {"info": options.video.info(features[key].shape, fps)}
        own += [
            (f"{TIME}.{camera}", "int64"), (f"{SEQ}.{camera}", "int64"), (f"{REPEATED}.{camera}", "bool"),
        ]  # fmt: skip
    return features | {k: Feature(k, dtype, (1,), ()) for k, dtype in own}, raw


def _refuse_unfit(episode: Episode, first: Episode, plan: ExportPlan) -> None:
    meta, options = episode.meta, plan.options
    if options.fps is None and abs(meta.fps - plan.fps) > 1e-6:
        whole = "" if episode is first else f", {first.id} has {first.meta.fps:g}"
        raise StoreError(f"episode {episode.id} has {meta.fps:g} ticks a second{whole}", "give --fps")
    mine, _ = _features(episode, plan.streams, options, plan.fps)
    theirs = {k: f for k, f in plan.features.items() if k not in plan.labels}
    if {k: (f.dtype, f.shape) for k, f in mine.items()} != {k: (f.dtype, f.shape) for k, f in theirs.items()}:
        raise StoreError(
            f"episode {episode.id} has other streams or cameras than {first.id}",
            "choose episodes that are alike (--where)",
        )
    for name in (tick_stream_name(episode), *plan.streams):
        if not meta.streams[name].rows:
            raise StoreError(f"episode {episode.id} has no row of {name}", "leave it out (--where)")
    for camera, seen in meta.cameras.items():
        if not seen.frames:
            raise StoreError(
                f"episode {episode.id} has no picture of camera {camera}", "leave it out (--where)"
            )
