"""An episode as a Rerun recording. The SDK (`rerun-sdk`) is an extra, imported only here, when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from episodes.reader import Episode
from tools.errors import UsageError
from tools.finding import first_sample_ns

_BATCH_FRAMES = 200  # encoded pictures held in memory at a time
_SOURCES = ("none", "teleop", "policy", "intervention", "replay")
_CAPTURE = "capture"  # the timeline: time since the episode's first sample, as captured


def load_sdk() -> Any:
    """The module ``rerun``. Raises UsageError saying how to get it."""
    try:
        sdk = importlib.import_module("rerun")
    except ImportError as error:
        raise UsageError(
            f"the export needs rerun-sdk ({error}); run `pip install rerun-sdk` in ratchet's environment"
        ) from error
    if not hasattr(sdk, "send_columns") or not hasattr(sdk, "RecordingStream"):
        raise UsageError("this rerun-sdk is too old; run `pip install 'rerun-sdk>=0.24'`")
    return sdk


def export(episode: Episode, target: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write ``episode`` to ``target`` (.rrd). Pictures go in as stored, nothing is encoded again.

    Paths: ``cameras/NAME``, ``streams/NAME``, ``flags``, ``source``. ``progress`` gets the frames done.
    Raises UsageError without the SDK or when ``target`` exists, DamagedError.
    """
    sdk = load_sdk()
    if target.exists():
        raise UsageError(f"{target} exists; choose another --out")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}; make it first")
    partial = target.with_name(f"{target.name}.partial")
    recording = sdk.RecordingStream("ratchet", recording_id=episode.id)
    try:
        recording.save(str(partial))
        _write(sdk, recording, episode, progress)
        recording.flush()
        recording.disconnect()
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _write(sdk: Any, recording: Any, episode: Episode, progress: Callable[[int], None]) -> None:
    origin = first_sample_ns(episode)
    meta = episode.meta
    recording.send_recording_name(f"{meta.task} · {meta.id}")
    about = f"{meta.kind}, {meta.outcome} ({meta.reason})\n{meta.started_wall}\n{meta.provenance}"
    recording.log("about", sdk.TextDocument(about), static=True)
    for name in episode.streams:
        _stream(sdk, recording, episode, name, origin)
    _events(sdk, recording, episode, origin)
    done = 0
    for camera in episode.cameras:
        frames = episode.frames(camera)
        for start in range(0, len(frames), _BATCH_FRAMES):
            chosen = range(start, min(start + _BATCH_FRAMES, len(frames)))
            times = (frames.t_ns[chosen.start : chosen.stop] - origin).astype("timedelta64[ns]")
            pictures = [frames.jpeg(i) for i in chosen]
            recording.send_columns(
                f"cameras/{camera}",
                indexes=[sdk.TimeColumn(_CAPTURE, duration=times)],
                columns=sdk.EncodedImage.columns(blob=pictures, media_type=["image/jpeg"] * len(pictures)),
            )
            done += len(pictures)
            progress(done)


def _stream(sdk: Any, recording: Any, episode: Episode, name: str, origin: int) -> None:
    stream = episode.streams[name]
    values = np.asarray(stream.values, np.float64).reshape(len(stream), -1)
    if not values.size:
        return
    times = (stream.t_ns - origin).astype("timedelta64[ns]")
    labels = [n.removesuffix(".pos") for n in stream.names] or [str(i) for i in range(values.shape[1])]
    path = f"streams/{name}"
    recording.log(path, sdk.SeriesLines(names=labels[: values.shape[1]]), static=True)
    columns = sdk.Scalars.columns(scalars=values.reshape(-1))
    if values.shape[1] > 1:
        columns = columns.partition([values.shape[1]] * len(values))
    recording.send_columns(path, indexes=[sdk.TimeColumn(_CAPTURE, duration=times)], columns=columns)


def _events(sdk: Any, recording: Any, episode: Episode, origin: int) -> None:
    """Flags, take-overs, and each change of who commanded, as lines of a log."""

    def note(path: str, t_ns: int, text: str, level: str) -> None:
        recording.set_time(_CAPTURE, duration=np.timedelta64(t_ns - origin, "ns"))
        recording.log(path, sdk.TextLog(text, level=level))

    for flag in episode.flags:
        span_s = (flag.end_ns - flag.start_ns) / 1e9
        words = f"{flag.kind} for {span_s:.2f} s, score {flag.score:.4g}, {flag.evidence}"
        note("flags", flag.start_ns, words, "WARN")
    for span in episode.interventions:
        note("interventions", span.start_ns, f"{span.by} takes over", "INFO")
        note("interventions", span.end_ns, f"{span.by} hands back", "INFO")
    if "tick.source" in episode.streams:
        source = episode.streams["tick.source"]
        for i in np.flatnonzero(np.diff(source.values.astype(np.int64), prepend=-1)).tolist():
            code = int(source.values[i])
            note("source", int(source.t_ns[i]), _SOURCES[code] if code < len(_SOURCES) else str(code), "INFO")
