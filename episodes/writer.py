"""Recording one episode: a bounded queue in front, a thread with the disk behind.

``append`` costs a copy and a queue put. The thread encodes pictures, commits a group to the
journal every ``group_ms`` or ``group_bytes``, and at the end publishes. What finds the queue full is
counted per stream and recorded as a drop. A disk error ends the recording: the next call raises it,
and what was committed stays in the journal for recovery.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from episodes.backlog import Backlog, Take
from episodes.draft import Draft
from episodes.errors import RecordingError, StoreError
from episodes.files import FileLayer, io_error
from episodes.group import Group
from episodes.journal import JournalWriter, RecordKind
from episodes.ref import EpisodeRef as EpisodeRef  # part of this module's interface
from episodes.spec import DropCount, EpisodeMeta, FlagRow, Frozen, InterventionRow, Outcome, json_copy

log = logging.getLogger(__name__)

_TIMES = struct.Struct("<qq")


class WriterConfig(Frozen):
    """How often groups are committed and how much may wait.

    A crash loses at most ``group_ms`` of data. The queue holds ``queue_items`` samples or
    ``queue_bytes`` of raw pictures, about 2 s of three 640×480 cameras. ``wait_when_full`` makes
    ``append`` wait instead of dropping: for lockstep recording, where nothing is in a hurry and
    every sample counts; never for real time.
    """

    group_ms: int = Field(default=200, ge=10, le=5000)
    group_bytes: int = Field(default=4 << 20, ge=4096, le=256 << 20)
    queue_items: int = Field(default=16384, ge=16, le=1_000_000)
    queue_bytes: int = Field(default=192 << 20, ge=1 << 16, le=4 << 30)
    wait_when_full: bool = False


class Publisher(Protocol):
    """What the writer hands its finished episode to."""

    def publish(self, draft: Draft, journal: JournalWriter) -> EpisodeMeta:
        """Publish the episode and delete its journal. Raises StoreError, the journal kept."""

    def forget(self, episode_id: str, left: bool = False) -> None:
        """The episode is not being written any more; ``left``: the disk refused, its journal is kept."""


class EpisodeWriter:
    """Records one episode. Thread-safe; made by ``EpisodeStore.begin``."""

    def __init__(
        self,
        draft: Draft,
        journal: JournalWriter,
        publisher: Publisher,
        files: FileLayer,
        config: WriterConfig,
    ) -> None:
        self.id = draft.episode_id
        self.spec = draft.spec
        self._draft = draft
        self._journal = journal
        self._publisher = publisher
        self._files = files
        self._config = config
        self._streams = {s.name: (i, np.dtype(s.dtype), s.shape) for i, s in enumerate(draft.spec.streams)}
        self._cameras = {c.name: (i, (c.height, c.width, 3)) for i, c in enumerate(draft.spec.cameras)}
        self._backlog = Backlog(config.queue_items, config.queue_bytes)
        self._error: StoreError | None = None
        self._closing: str | None = None  # "end" or "discard"
        self._ref = EpisodeRef(self.id)
        self._group = Group(draft, journal)  # touched by the thread only
        self._thread = threading.Thread(target=self._run, name=f"episode-{self.id}", daemon=True)

    def start(self) -> None:
        """Called once by the store, when it knows the writer."""
        self._thread.start()

    # ---- the caller's side ------------------------------------------------------------------

    def append(self, stream: str, t_ns: int, seq: int, value: npt.ArrayLike) -> bool:
        """Queue one row; False when the queue was full and the row was dropped (and counted).

        Raises RecordingError for an unknown stream, a wrong shape, a finished episode, or the disk
        error met since the last call.
        """
        try:
            index, dtype, shape = self._streams[stream]
        except KeyError:
            raise self._unknown("stream", stream, self._streams) from None
        array = np.asarray(value, dtype)
        if array.shape != shape:
            raise RecordingError(
                f"stream {stream} of episode {self.id} takes shape {shape}, not {array.shape}",
                "check the spec",
            )
        data = _TIMES.pack(t_ns, seq) + array.tobytes()
        return self._put(stream, t_ns, len(data), lambda: self._group.add_row(index, data))

    def append_frame(
        self, camera: str, t_ns: int, seq: int, rgb: npt.NDArray[np.uint8], repeated: bool = False
    ) -> bool:
        """Queue one uint8 RGB (H, W, 3) picture (copied); False when it was dropped (and counted).

        ``repeated`` says that the device handed out the same picture again. Raises as ``append``.
        """
        try:
            index, shape = self._cameras[camera]
        except KeyError:
            raise self._unknown("camera", camera, self._cameras) from None
        if rgb.shape != shape or rgb.dtype != np.uint8:
            raise RecordingError(
                f"camera {camera} of episode {self.id} takes uint8 {shape}, not {rgb.dtype} {rgb.shape}",
                "check the spec",
            )
        image = rgb.copy()
        queued = self._put(
            camera, t_ns, image.nbytes, lambda: self._group.add_frame(index, t_ns, seq, repeated, image)
        )
        self._backlog.wake.set()  # encode at once: a burst of pictures at the deadline would be late
        return queued

    def append_jpeg(self, camera: str, t_ns: int, seq: int, jpeg: bytes, repeated: bool = False) -> bool:
        """As ``append_frame``, for a picture that is a JPEG of the camera's size already."""
        try:
            index, _ = self._cameras[camera]
        except KeyError:
            raise self._unknown("camera", camera, self._cameras) from None
        return self._put(
            camera, t_ns, len(jpeg), lambda: self._group.add_jpeg(index, t_ns, seq, repeated, jpeg)
        )

    def flag(
        self, kind: str, start_ns: int, end_ns: int, score: float, evidence: dict[str, Any] | None = None
    ) -> None:
        """Note something about a span of the episode."""
        copied = json_copy(evidence or {}, f"the evidence of flag {kind}")
        row = FlagRow(kind=kind, start_ns=start_ns, end_ns=end_ns, score=score, evidence=copied)
        self._put_event({"flag": row.model_dump()})

    def intervention(self, start_ns: int, end_ns: int, by: str) -> None:
        """Note that ``by`` took over for a span of the episode."""
        self._put_event(
            {"intervention": InterventionRow(start_ns=start_ns, end_ns=end_ns, by=by).model_dump()}
        )

    def end(self, outcome: Outcome, reason: str = "") -> EpisodeRef:
        """Finish the episode; returns at once, publishing goes on in the background.

        Raises the disk error met since the last call; what was committed is kept and recovered.
        """
        self._check()
        self._draft.outcome, self._draft.reason, self._draft.ended = outcome, reason, True
        self._close("end")
        return self._ref

    def discard(self) -> None:
        """Throw the episode away: nothing of it is kept. Safe after an error, and twice."""
        if self._closing == "end":
            raise RecordingError(f"episode {self.id} is finished", "it cannot be discarded any more")
        self._close("discard")
        self._thread.join()
        self._publisher.forget(self.id)
        self._files.unlink(self._journal.path)

    def stop(self, reason: str) -> None:
        """End the episode with an unknown outcome if it still runs, and wait until it is published.

        Never raises: what cannot be published stays in the journal for recovery.
        """
        if self._error is None and self._closing is None:
            self.end("unknown", reason)
        self._thread.join()

    @property
    def committed_bytes(self) -> int:
        """Bytes of this episode that a crash can no longer take."""
        return self._journal.committed_bytes

    @property
    def drops(self) -> dict[str, DropCount]:
        """Samples dropped so far, per stream or camera."""
        return self._backlog.drops()

    def _unknown(self, what: str, name: str, known: dict[str, Any]) -> RecordingError:
        return RecordingError(
            f"episode {self.id} has no {what} {name!r}", f"it has: {', '.join(sorted(known))}"
        )

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing is not None:
            raise RecordingError(f"episode {self.id} is finished", "begin a new one")

    def _close(self, how: str) -> None:
        self._closing = how
        self._backlog.wake.set()

    def _put(self, name: str, t_ns: int, size: int, take: Take) -> bool:
        self._check()
        while not self._backlog.put(size, take):
            self._backlog.wake.set()
            if not self._config.wait_when_full:
                self._backlog.count_drop(name, t_ns)
                return False
            time.sleep(0.0005)
            self._check()
        return True

    def _put_event(self, event: dict[str, Any]) -> None:
        self._check()
        self._backlog.put_always(lambda: self._group.add_event(event))

    # ---- the thread's side ------------------------------------------------------------------

    def _run(self) -> None:
        meta: EpisodeMeta | None = None
        try:
            self._journal.append(RecordKind.HEADER, self._draft.header())
            self._record()
            if self._closing == "end":
                meta = self._publisher.publish(self._draft, self._journal)
            else:
                self._journal.close()  # discard() deletes the file
        except OSError as error:
            self._fail(io_error(error, self._journal.path, self._kept()))
        except (StoreError, cv2.error) as error:
            self._fail(error if isinstance(error, StoreError) else RecordingError(f"JPEG encoder: {error}"))
        finally:
            self._journal.close()
            if meta is None and self._error is None and self._closing == "end":
                self._error = RecordingError(f"the recorder of episode {self.id} failed", "see the log")
            self._publisher.forget(self.id, left=self._error is not None)
            self._ref.resolve(meta, self._error)

    def _record(self) -> None:
        period = self._config.group_ms / 1000
        deadline = time.monotonic() + period
        while True:
            self._backlog.wake.wait(max(0.0, deadline - time.monotonic()))
            self._backlog.wake.clear()
            closing = self._closing
            if closing == "discard":
                return
            while self._backlog and self._group.bytes < self._config.group_bytes:
                self._backlog.take_one()
                if time.monotonic() >= deadline:
                    break
            full = self._group.bytes >= self._config.group_bytes
            if full or closing or time.monotonic() >= deadline:
                self._group.commit(self._backlog.drops())
                deadline = time.monotonic() + period
            if self._backlog:
                self._backlog.wake.set()
            elif closing == "end":
                self._journal.append(RecordKind.END, self._draft.end_record())
                return

    def _kept(self) -> str:
        kept = self._journal.committed_bytes
        return f"; the {kept} bytes of episode {self.id} committed so far are kept" if kept else ""

    def _fail(self, error: StoreError) -> None:
        self._error = error
        log.error("episode.failed id=%s error=%s", self.id, error)
        try:
            self._journal.cut_torn_tail()
        except OSError as again:
            log.warning("episode.tail_not_cut id=%s error=%s", self.id, again)
