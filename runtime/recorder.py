"""What of each tick goes into the episode store, and when an episode begins and ends.

The action recorded for a tick is the goal that the servo core had let through by the end of that
tick, so a row is written when the next observation brings it. What was asked for stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from episodes.errors import RecordingError
from episodes.spec import CameraSpec, EpisodeSpec, Kind, Outcome, PictureCodec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import EpisodeRef, EpisodeWriter, WriterConfig
from hal.types import JOINTS, Frame, JointState
from runtime.nouns import Flag, Observation, Source, Vector
from runtime.preroll import Preroll
from runtime.streams import recorded_streams

_PUBLISHED_S = 20.0

NAMES = tuple(f"{joint}.pos" for joint in JOINTS)


@dataclass(slots=True)
class _Pending:
    """A tick's row that still waits for the goal that was let through."""

    observation: Observation
    asked: Vector
    source: Source
    lateness_ms: float


@dataclass(frozen=True, slots=True)
class RecordingFigures:
    """How the running episode does, zeros when none runs.

    ``bytes_per_s`` is the last known rate on the disk, ``disk_free`` bytes or None before it was looked
    at, ``held_s`` how many of the last seconds are held while nothing is recorded.
    """

    task: str = ""
    seconds: float = 0.0
    frames: int = 0
    repeated: int = 0
    dropped: int = 0
    bytes_per_s: float = 0.0
    disk_free: int | None = None
    held_s: float = 0.0


class EpisodeRecorder:
    """Writes control ticks of one arm into one store, one episode at a time."""

    def __init__(
        self,
        store: EpisodeStore,
        cameras: Sequence[CameraSpec],
        fps: float,
        provenance: Mapping[str, Any],
        *,
        bus_streams: bool = False,
        lockstep: bool = False,
        codec: PictureCodec = "jpeg",
        jpeg_quality: int = 95,
        crf: int = 22,
        preroll: Preroll | None = None,
    ) -> None:
        self._store = store
        self._cameras = tuple(cameras)
        self._fps = fps
        self._provenance = dict(provenance)
        self._bus_streams = bus_streams
        # In lockstep nothing is in a hurry and every sample counts; in real time nothing may wait.
        self._writer_config = WriterConfig(wait_when_full=lockstep)
        self._codec: PictureCodec = codec
        self._jpeg_quality, self._crf = jpeg_quality, crf
        self._preroll = preroll
        self.disk_free: int | None = None
        self._writer: EpisodeWriter | None = None
        self._begun_ns = 0
        self._frames = self._repeated = 0
        self._bytes_per_s = 0.0
        self._pending: _Pending | None = None
        self._frame_seq: dict[str, int] = {}
        self._takeover: tuple[int, str] | None = None
        self._last_ns = 0

    @property
    def running(self) -> str | None:
        """Id of the episode being written, or None."""
        return None if self._writer is None else self._writer.id

    @property
    def listening(self) -> bool:
        """Whether ticks are wanted: an episode runs, or the last seconds are held in case."""
        return self._writer is not None or self._preroll is not None

    def figures(self) -> RecordingFigures:
        """How the recording does; cheap."""
        writer, seconds = self._writer, 0.0
        drops = 0
        if writer is not None:
            seconds = (time.monotonic_ns() - self._begun_ns) / 1e9
            drops = sum(drop.count for drop in writer.drops.values())
            if seconds > 1.0:
                self._bytes_per_s = writer.committed_bytes / seconds
        return RecordingFigures(
            "" if writer is None else writer.spec.task,
            seconds,
            self._frames if writer is not None else 0,
            self._repeated if writer is not None else 0,
            drops,
            self._bytes_per_s,
            self.disk_free,
            0.0 if self._preroll is None else self._preroll.seconds,
        )

    @property
    def kind(self) -> Kind | None:
        """What kind of episode is being written, or None."""
        return None if self._writer is None else self._writer.spec.kind

    def start(
        self,
        task: str,
        kind: Kind,
        provenance: Mapping[str, Any] | None = None,
        episode_id: str | None = None,
    ) -> str:
        """Begin an episode of ``kind`` "demo", "rollout" or "intervention"; its id. Raises StoreError.

        Lockstep names its episodes by seed, so that the same seed gives the same store.
        """
        return self.begin(self.open(task, kind, provenance, episode_id))

    def open(
        self,
        task: str,
        kind: Kind,
        provenance: Mapping[str, Any] | None = None,
        episode_id: str | None = None,
    ) -> EpisodeWriter:
        """Make an episode's journal, which waits for the disk: from an event loop, in a thread.

        Raises StoreError. Nothing is recorded before ``begin``.
        """
        spec = self._spec(task, kind, provenance)
        return self._store.begin(spec, episode_id=episode_id, config=self._writer_config)

    def _spec(self, task: str, kind: Kind, provenance: Mapping[str, Any] | None) -> EpisodeSpec:
        return EpisodeSpec(
            task=task,
            fps=self._fps,
            streams=_stream_specs(self._bus_streams),
            cameras=self._cameras,
            provenance={**self._provenance, **(provenance or {})},
            kind=kind,
            codec=self._codec,
            jpeg_quality=self._jpeg_quality,
            crf=self._crf,
        )

    def begin(self, writer: EpisodeWriter) -> str:
        """Record into ``writer`` from the next tick on; returns its id."""
        self._writer = writer
        self._begun_ns = time.monotonic_ns()
        self._frames = self._repeated = 0
        if self._preroll is not None:
            self._preroll.forget()
        self._pending = None
        self._frame_seq = {}
        self._takeover = None
        return writer.id

    def tick(
        self,
        observation: Observation,
        asked: Vector,
        source: Source,
        lateness_ms: float = 0.0,
        frames: Mapping[str, Sequence[Frame]] | None = None,
    ) -> None:
        """Record one control tick; frames already recorded are not recorded twice.

        ``frames`` are all that each camera has given since the tick before, oldest first (default: those
        of the observation).
        """
        if not self.listening:
            return
        self._flush_row(observation.goal)
        self._pending = _Pending(observation, asked, source, lateness_ms)
        self._last_ns = observation.t_ns
        if frames is None:
            frames = {camera: (frame,) for camera, frame in observation.frames.items()}
        for camera, given in frames.items():
            for frame in given:
                self._frame(camera, frame)

    def bus(self, samples: Sequence[tuple[int, int, Mapping[str, Vector]]]) -> None:
        """Record samples at bus rate: (t_ns, seq, values by stream name)."""
        sink = self._writer or self._preroll
        if sink is None or not self._bus_streams:
            return
        for t_ns, seq, values in samples:
            for name, value in values.items():
                sink.append(name, t_ns, seq, value)

    def flag(self, flag: Flag) -> None:
        """Attach what a monitor noticed."""
        if self._writer is not None:
            self._writer.flag(flag.kind, flag.start_ns, flag.end_ns, flag.score, flag.evidence)

    def take_over(self, t_ns: int, by: str) -> None:
        """A person (or the script that stands in for one) takes over now."""
        if self._takeover is None:
            self._takeover = (t_ns, by)

    def hand_back(self, t_ns: int) -> None:
        """The person lets go; the span becomes an intervention, and a flag: somebody had to help."""
        if self._takeover is not None and self._writer is not None:
            start_ns, by = self._takeover
            self._writer.intervention(start_ns, t_ns, by)
            self._writer.flag("takeover", start_ns, t_ns, 1.0, {"by": by})
        self._takeover = None

    def end(self, outcome: Outcome, reason: str, goal: Vector) -> EpisodeRef | None:
        """Finish the episode; ``goal`` is the last goal let through. Publishing goes on behind."""
        if self._writer is None:
            return None
        self._flush_row(goal)
        self.hand_back(self._last_ns)
        writer, self._writer = self._writer, None
        return writer.end(outcome, reason)

    def keep_last(self, task: str, outcome: Outcome) -> tuple[EpisodeRef, int]:
        """Make an episode of what is held of the last seconds: it and its ticks. It waits: use a thread.

        Raises RecordingError when nothing is held, and what the disk does.
        """
        items = [] if self._preroll is None else self._preroll.take()
        if not items:
            raise RecordingError(
                "none of the last seconds are held",
                "set keep_last_s below [store] in ratchet.toml" if self._preroll is None else "wait a little",
            )
        spec = self._spec(task, "demo", {"kept": "afterwards"})
        config = WriterConfig(wait_when_full=True)
        writer = self._store.begin(spec, started_ns=items[0].t_ns, config=config)
        for item in items:
            item.put(writer)
        ticks = sum(item.stream == "action" for item in items)
        return writer.end(outcome, "kept afterwards"), ticks

    def throw_away(self, ref: EpisodeRef) -> None:
        """Delete an episode that has ended, once it is published. Waits: use a thread. Raises StoreError."""
        ref.wait(_PUBLISHED_S)
        self._store.delete(ref.id)

    def drop(self) -> EpisodeWriter | None:
        """Stop recording without ending the episode; the caller then discards its writer, which waits."""
        writer, self._writer, self._pending = self._writer, None, None
        return writer

    def discard(self) -> None:
        """Throw the running episode away at the operator's word."""
        writer = self.drop()
        if writer is not None:
            writer.discard()

    def abandon(self) -> None:
        """Stop recording after an error of the disk; what was committed stays for the store to recover."""
        self._writer, self._pending = None, None

    def _frame(self, camera: str, frame: Frame) -> None:
        sink = self._writer or self._preroll
        if sink is None or self._frame_seq.get(camera) == frame.seq:
            return
        self._frame_seq[camera] = frame.seq
        self._frames += 1
        self._repeated += frame.repeated
        sink.append_frame(camera, frame.t_ns, frame.seq, frame.image, repeated=frame.repeated)

    def _flush_row(self, goal: Vector) -> None:
        row, self._pending = self._pending, None
        sink = self._writer or self._preroll
        if row is None or sink is None:
            return
        observation, joints = row.observation, row.observation.joints
        values: dict[str, Any] = {
            "observation.state": joints.position,
            "action": goal,
            "action.asked": row.asked,
            "observation.velocity": joints.velocity,
            "observation.effort": joints.effort,
            "observation.temperature": joints.temperature,
            "observation.voltage": joints.voltage,
            "observation.hardware_error": joints.hardware_error,
            "tick.source": np.uint8(row.source),
            "tick.lateness_ms": np.float32(row.lateness_ms),
        }
        for name, value in values.items():
            sink.append(name, observation.t_ns, observation.tick, value)


def bus_row(joints: JointState, goal: Vector) -> tuple[int, int, Mapping[str, Vector]]:
    """One bus cycle as ``EpisodeRecorder.bus`` takes it: its sample and the goal let through, rad (6,)."""
    values = {
        "bus.position": joints.position,
        "bus.velocity": joints.velocity,
        "bus.effort": joints.effort,
        "bus.goal": goal,
    }
    return joints.t_ns, joints.seq, values


def _stream_specs(bus_streams: bool) -> tuple[StreamSpec, ...]:
    """The stream table's rows that are recorded, in the store's words."""
    return tuple(
        StreamSpec(
            name=row.name,
            dtype=row.dtype,
            shape=row.shape,
            unit=row.unit,
            names=NAMES if row.shape == (6,) else (),
        )
        for row in recorded_streams()
        if bus_streams or not row.name.startswith("bus.")
    )
