"""What the page asks of a store, read-only: the list, one episode, its frames, its traces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from episodes.catalogue import TABLES
from episodes.errors import DamagedError, QueryError, UnknownEpisodeError
from episodes.query import query
from episodes.reader import Episode, FrameSeq
from episodes.store import EpisodeStore
from tools.finding import first_sample_ns
from tools.viewer.traces import MAX_SERIES, spans, trace

MAX_ID_BYTES = 255
KEPT = 6  # episodes whose numbers stay in memory
MAX_ROWS = 1000
RUN = 32  # frames in one answer
RUN_BYTES = 8 << 20
QUERY_S = 10.0
ANSWER_BYTES = 16 << 20  # of a list
MAX_VALUES = 300_000  # of one answer of traces, about 3 MB
_LISTED = (
    "id, task, kind, outcome, reason, ticks, round(seconds, 2) AS seconds, started_wall, robot, policy, "
    "session, cameras, flags, interventions, dropped, missing, recovered"
)
_KINDS = "(SELECT list(DISTINCT f.kind) FROM flags f WHERE f.episode_id = e.id)"
_ORDER = "started_wall DESC, id DESC"
_SOURCE = "tick.source"


class Opened:
    """An episode, its first instant, and its cameras' indices once asked for."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self._cameras: dict[str, FrameSeq] = {}
        times = [self.frames(c).t_ns for c in episode.cameras]
        clocks = {s.time: name for name, s in episode.meta.streams.items()}
        times += [episode.streams[name].t_ns for name in clocks.values()]
        held = [t for t in times if len(t)]
        self.origin_ns = first_sample_ns(episode)
        self.seconds = (max((int(t[-1]) for t in held), default=self.origin_ns) - self.origin_ns) / 1e9

    def frames(self, camera: str) -> FrameSeq:
        """Index of ``camera``. Raises KeyError, DamagedError."""
        if camera not in self._cameras:
            self._cameras[camera] = self.episode.frames(camera)
        return self._cameras[camera]

    def after(self, t_ns: int) -> float:
        """Seconds since the first sample."""
        return round((t_ns - self.origin_ns) / 1e9, 4)


class Library:
    """Thread-safe. Raises the store's errors, and KeyError for cameras and streams there are not."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """The store as a whole."""
        catalogue = self._store.catalogue
        ((episodes, seconds),) = catalogue.select("SELECT count(*), coalesce(sum(seconds), 0) FROM episodes")
        kinds = catalogue.select(
            "SELECT kind, count(*) AS n FROM flags GROUP BY kind ORDER BY n DESC LIMIT 30"
        )
        return {
            "root": str(self._store.root.resolve()),
            "episodes": episodes,
            "seconds": seconds,
            "flag_kinds": [{"kind": kind, "n": n} for kind, n in kinds],
            "columns": {table: list(columns) for table, columns in TABLES.items()},
        }

    def episodes(self, where: str, limit: int, offset: int) -> dict[str, Any]:
        """Episodes for which the SQL condition holds, the newest first. Raises QueryError."""
        # On lines of its own, so that a comment at its end hides nothing of the statement.
        rows = query(
            self._store.catalogue,
            f"WITH chosen AS MATERIALIZED (SELECT * FROM episodes WHERE (\n{where.strip() or 'true'}\n)),\n"
            f"page AS (SELECT {_LISTED}, {_KINDS} AS kinds FROM chosen e ORDER BY {_ORDER} "
            f"LIMIT {min(max(limit, 1), MAX_ROWS)} OFFSET {max(offset, 0)}),\n"
            "total AS (SELECT count(*) AS _n, coalesce(sum(seconds), 0) AS _s FROM chosen)\n"
            f"SELECT total.*, page.* FROM total LEFT JOIN page ON true ORDER BY {_ORDER}",
            QUERY_S,
            ANSWER_BYTES,
        )
        if not rows or not {"_n", "_s", "id"} <= rows[0].keys():
            raise QueryError("this is no condition", "such as: outcome = 'failure' AND flagged")
        totals = [(row.pop("_n"), row.pop("_s")) for row in rows]
        # Behind the last page there is a row of totals alone.
        listed = [row for row in rows if row["id"] is not None]
        return {"total": totals[0][0], "seconds": totals[0][1], "episodes": listed}

    def episode(self, episode_id: str) -> dict[str, Any]:
        """Everything about an episode but its samples; times in seconds after its first sample."""
        opened = self._open(episode_id)
        meta = opened.episode.meta
        source = opened.episode.streams[_SOURCE] if _SOURCE in meta.streams else None
        described = {
            **meta.model_dump(mode="json", exclude={"flags", "interventions", "streams", "started_ns"}),
            "seconds": opened.seconds,
            "streams": {n: s.model_dump(mode="json", exclude={"time"}) for n, s in meta.streams.items()},
            "flags": [
                {
                    "kind": f.kind,
                    "start": opened.after(f.start_ns),
                    "end": opened.after(f.end_ns),
                    "score": f.score,
                    "evidence": f.evidence,
                }
                for f in sorted(meta.flags, key=lambda f: f.start_ns)
            ],
            "interventions": [
                {"start": opened.after(i.start_ns), "end": opened.after(i.end_ns), "by": i.by}
                for i in meta.interventions
            ],
            "sources": spans(source, opened.origin_ns) if source is not None else [],
        }
        finite: dict[str, Any] = _finite(described)
        return finite

    def frames(self, episode_id: str, camera: str) -> dict[str, Any]:
        """When each frame was captured (ms), which were repeated, and after which some are missing."""
        opened = self._open(episode_id)
        index = opened.frames(camera)
        lost = np.diff(index.seq) - 1
        return {
            "t_ms": np.round((index.t_ns - opened.origin_ns) / 1e6, 2).tolist(),
            "repeated": np.flatnonzero(index.repeated).tolist(),
            "missing": [(int(i), int(lost[i])) for i in np.flatnonzero(lost > 0)],
        }

    def jpegs(self, episode_id: str, camera: str, first: int, count: int) -> bytes:
        """The stored pictures ``first`` …, each behind its length (uint32, little-endian).

        A damaged one has length 0. At most RUN frames and RUN_BYTES, one at least. Raises IndexError.
        """
        frames = self._open(episode_id).frames(camera)
        if not 0 <= first < len(frames):
            raise IndexError(f"camera {camera} has frames 0 to {len(frames) - 1}")
        out = bytearray()
        for index in range(first, min(first + max(1, min(count, RUN)), len(frames))):
            try:
                picture = frames.jpeg(index)
            except DamagedError:
                picture = b""
            if out and len(out) + len(picture) > RUN_BYTES:
                break
            out += len(picture).to_bytes(4, "little") + picture
        return bytes(out)

    def traces(
        self, episode_id: str, names: list[str], begin_s: float, end_s: float, points: int
    ) -> dict[str, Any]:
        """Streams ``names`` between two times, cut down to ``points`` spans, or to fewer."""
        opened = self._open(episode_id)
        streams = opened.episode.meta.streams
        wide = sum(min(MAX_SERIES, int(np.prod(streams[n].shape, dtype=np.int64))) * 2 for n in names)
        points = min(points, MAX_VALUES // max(1, 2 * wide))
        return {n: trace(opened.episode.streams[n], opened.origin_ns, begin_s, end_s, points) for n in names}

    def _open(self, episode_id: str) -> Opened:
        if "/" in episode_id or episode_id.startswith("."):
            raise QueryError(f"{episode_id!r} is no episode's id")
        if (
            len(episode_id.encode()) > MAX_ID_BYTES
        ):  # no folder has such a name, the system would not even look
            raise UnknownEpisodeError(f"no episode has an id of more than {MAX_ID_BYTES} bytes")
        with self._lock:
            if episode_id in self._opened:
                self._opened.move_to_end(episode_id)
                return self._opened[episode_id]
        opened = Opened(self._store.read(episode_id))
        with self._lock:
            self._opened[episode_id] = opened
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return opened


def _finite(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
