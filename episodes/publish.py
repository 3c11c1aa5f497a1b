"""Turning a draft into a published episode: a Zarr group that is there whole or not at all.

Order: all arrays into ``<id>.partial``, synced; the commit marker with their digests, synced; rename
to the final name; sync of the parent folder. The caller then adds the catalogue row and deletes the
journal. A crash at any point leaves either the journal or the episode, or both, never neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from episodes.draft import Draft
from episodes.files import FileLayer
from episodes.journal import FrameRow
from episodes.marker import MARKER_NAME, Marker
from episodes.spec import TICK_STREAMS, CameraMeta, EpisodeMeta, StreamMeta
from episodes.zarrfile import FileTable, write_array, write_blob, write_group

PARTIAL = ".partial"
TIME_ATTRIBUTES = {"columns": ["t_ns", "seq"]}
FRAME_COLUMNS = ["t_ns", "seq", "repeated", "offset", "length", "crc32c"]


def publish(draft: Draft, journal: Path, folder: Path, files: FileLayer, durable: bool) -> Marker:
    """Write the episode's group under ``folder`` and give it its final name.

    ``durable`` False leaves the syncing to a later ``EpisodeStore.sync``. Raises OSError, with the
    partial folder removed and the journal untouched.
    """
    partial = folder / (draft.episode_id + PARTIAL)
    files.remove_tree(partial)
    table: FileTable = {}
    try:
        marker = Marker(_write_arrays(draft, journal, partial, files, table), table)
        if durable:
            _sync_tree(partial, files, table)
        files.write_file(partial / MARKER_NAME, (marker.encode(),))
        if durable:
            files.sync_path(partial / MARKER_NAME)
            files.sync_path(partial)
        files.rename(partial, folder / draft.episode_id)
    except OSError:
        files.remove_tree(partial)
        raise
    if durable:
        files.sync_path(folder)
    return marker


def _sync_tree(root: Path, files: FileLayer, table: FileTable) -> None:
    for name in table:
        files.sync_path(root / name)
    for name in sorted({str(Path(name).parent) for name in table}):
        files.sync_path(root / name)


def _write_arrays(draft: Draft, journal: Path, root: Path, files: FileLayer, table: FileTable) -> EpisodeMeta:
    spec = draft.spec
    write_group(files, root, {"id": draft.episode_id, "task": spec.task, "fps": spec.fps}, table)
    times: dict[bytes, str] = {}
    streams: dict[str, StreamMeta] = {}
    spans: list[tuple[int, int]] = []
    for index, stream in enumerate(spec.streams):
        rows = draft.stream_rows(index)
        clock = np.column_stack([rows["t_ns"], rows["seq"]])
        key = clock.tobytes()
        time_name = times.get(key)
        if time_name is None:  # streams of the same ticks share one array of times
            time_name = times[key] = f"time.{len(times)}"
            write_array(files, root, time_name, clock, TIME_ATTRIBUTES, table)
        attributes = {"unit": stream.unit, "names": list(stream.names), "time": time_name}
        write_array(files, root, stream.name, rows["value"].astype(stream.dtype), attributes, table)
        missing, gap = _cadence(clock)
        streams[stream.name] = StreamMeta(
            dtype=stream.dtype, shape=stream.shape, unit=stream.unit, names=stream.names,
            rows=len(rows), time=time_name, missing=missing, max_gap_ns=gap,
        )  # fmt: skip
        spans += _span(clock)
    cameras = {}
    with journal.open("rb") as source:
        for index, camera in enumerate(spec.cameras):
            meta, clock = _write_camera(draft, index, source.fileno(), root, files, table)
            cameras[camera.name] = meta
            spans += _span(clock)
    return _meta(draft, streams, cameras, spans)


def _write_camera(
    draft: Draft, index: int, source: int, root: Path, files: FileLayer, table: FileTable
) -> tuple[CameraMeta, npt.NDArray[np.int64]]:
    camera, frames = draft.spec.cameras[index], draft.frames[index]
    rows = np.zeros((len(frames), len(FRAME_COLUMNS)), np.int64)
    total = 0
    for row, frame in zip(rows, frames, strict=True):
        row[:] = frame.t_ns, frame.seq, frame.repeated, total, frame.length, frame.crc
        total += frame.length
    name = f"frames.{camera.name}"
    size: dict[str, Any] = {"height": camera.height, "width": camera.width}
    write_array(files, root, f"{name}.index", rows, {"columns": FRAME_COLUMNS, **size}, table)
    write_blob(
        files, root, name, total, _jpegs(source, frames), {"encoding": draft.spec.codec, **size}, table
    )
    missing, gap = _cadence(rows)
    meta = CameraMeta(
        height=camera.height, width=camera.width, frames=len(frames), repeated=int(rows[:, 2].sum()),
        missing=missing, max_gap_ns=gap, bytes=total, codec=draft.spec.codec,
    )  # fmt: skip
    return meta, rows


def _jpegs(source: int, frames: list[FrameRow]) -> Iterator[bytes]:
    for frame in frames:
        data = os.pread(source, frame.length, frame.offset)
        if len(data) != frame.length:
            raise OSError(5, "the journal is shorter than what was written to it")
        yield data


def _cadence(clock: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Sequence numbers skipped, and the longest time between two samples in ns."""
    if len(clock) < 2:
        return 0, 0
    steps = np.diff(clock[:, :2], axis=0)
    skipped = np.maximum(steps[:, 1] - 1, 0).sum()
    return int(skipped), int(steps[:, 0].max())


def _span(clock: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(clock[:, 0].min()), int(clock[:, 0].max()))] if len(clock) else []


def _meta(
    draft: Draft,
    streams: dict[str, StreamMeta],
    cameras: dict[str, CameraMeta],
    spans: list[tuple[int, int]],
) -> EpisodeMeta:
    counts = [streams[name].rows for name in TICK_STREAMS if name in streams]
    ticks = counts[0] if counts else max((s.rows for s in streams.values()), default=0)
    seconds = (max(b for _, b in spans) - min(a for a, _ in spans)) / 1e9 if spans else 0.0
    spec = draft.spec
    return EpisodeMeta(
        id=draft.episode_id, task=spec.task, kind=spec.kind, outcome=draft.outcome, reason=draft.reason,
        recovered=draft.recovered, fps=spec.fps, started_wall=draft.started_wall, started_ns=draft.started_ns,
        ticks=ticks, seconds=seconds, provenance=spec.provenance, streams=streams, cameras=cameras,
        flags=tuple(draft.flags), interventions=tuple(draft.interventions), drops=draft.drops,
    )  # fmt: skip
