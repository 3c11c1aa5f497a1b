"""What a server must remember over a restart: what serves, who is on probation, who was rolled back.

One small JSON file, replaced as a whole. The registry's ledger is the history; this is the present.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from policy_server.errors import ConfigError

log = logging.getLogger(__name__)

MAX_EVENTS = 100
MAX_BARRED = 1000
MAX_EPISODE = 128  # as long as a report's may be
_MAX_RECORDS = 256
_MAX_REPORTED = 256
#: More than everything below at its longest makes, each character escaped: what was written can be read.
MAX_BYTES = 8 * 2**20

EventKind = Literal[
    "swapped",
    "passed",
    "rolled back",
    "bar lifted",
    "bar forgotten",
    "revived",
    "not revived",
    "no way back",
    "slower provider",
]
Version = Annotated[str, Field(max_length=64)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Place(_Part):
    """A bundle by version, and where it was loaded from."""

    version: Version
    path: str = Field(max_length=4096)
    backend: str = Field(max_length=32)


class Tally(_Part):
    """Episodes reported under one version."""

    episodes: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)


class Trial(_Part):
    """A probation under way. ``left_s`` is counted down while the server runs."""

    version: Version
    predecessor: Version
    bound: float = Field(gt=0.0, lt=1.0)
    episodes: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)
    row: int = Field(default=0, ge=0, description="failures in a row")
    left_s: float = Field(ge=0.0)


class Bar(_Part):
    """Why a version must not serve again unless a person says so."""

    reason: str = Field(max_length=512)
    wall: str = Field(max_length=64)
    by_server: bool


class Event(_Part):
    """Something that happened to what is served. ``wall`` is a label."""

    wall: str = Field(max_length=64)
    kind: EventKind
    version: Version
    previous: Version
    reason: str = Field(max_length=512)


class Standing(_Part):
    """Everything that is kept. ``configured`` is the bundle the server was started with.

    ``previous`` is what a person goes back to, ``fallback`` what the server goes back to by itself
    while a probation is on.
    """

    schema_id: Literal["ratchet.standing/1"] = "ratchet.standing/1"
    configured: str | None = Field(default=None, max_length=4096)
    serving: Place | None = None
    previous: Place | None = None
    fallback: Place | None = None
    trial: Trial | None = None
    records: dict[Version, Tally] = Field(default={}, max_length=_MAX_RECORDS)
    barred: dict[Version, Bar] = Field(default={}, max_length=MAX_BARRED)
    events: list[Event] = Field(default=[], max_length=MAX_EVENTS)
    reported: list[Annotated[str, Field(max_length=MAX_EPISODE)]] = Field(
        default=[], max_length=_MAX_REPORTED
    )

    def record(self, version: str) -> Tally:
        """The tally of a version, made when it has none; the oldest of very many is forgotten."""
        tally = self.records.setdefault(version, Tally())
        if len(self.records) > _MAX_RECORDS:
            del self.records[next(iter(self.records))]
        return tally

    def bar(self, version: str, bar: Bar) -> None:
        """Bar a version; of very many the one barred first is forgotten, which is an event."""
        self.barred[version] = bar
        if len(self.barred) > MAX_BARRED:
            oldest = next(iter(self.barred))
            forgotten = self.barred.pop(oldest)
            log.warning("standing.bar_forgotten version=%s reason=%s", oldest, forgotten.reason)
            reason = f"{MAX_BARRED} others are barred; this one was for: {forgotten.reason}"
            self.note("bar forgotten", oldest, reason=reason)

    def first_report_of(self, episode: str) -> bool:
        """Whether an episode is reported for the first time; it no longer is then."""
        if episode in self.reported:
            return False
        self.reported.append(episode)
        del self.reported[:-_MAX_REPORTED]
        return True

    def note(self, kind: EventKind, version: str, previous: str = "", reason: str = "") -> None:
        """Add an event; the oldest go."""
        self.events.append(
            Event(wall=now_label(), kind=kind, version=version, previous=previous, reason=reason[:512])
        )
        del self.events[:-MAX_EVENTS]


def read_standing(path: Path | None) -> Standing:
    """What was kept; a fresh one when there is no file. Raises ConfigError when it is not readable."""
    if path is None:
        return Standing()
    remedy = "move it away to start afresh: versions that were rolled back may serve again then"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Standing()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    try:
        standing = Standing.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigError(f"{path} is damaged: {error.errors()[0]['msg']}; {remedy}") from error
    _set_right(standing, path)
    return standing


def _set_right(standing: Standing, path: Path) -> None:
    """Undo what contradicts itself: a version that is its own way back, or is barred and serves."""
    trial, serving = standing.trial, standing.serving
    own = standing.fallback is not None and trial is not None and standing.fallback.version == trial.version
    if trial is not None and (own or trial.predecessor == trial.version):
        log.warning("standing.set_right path=%s version=%s: on probation against itself", path, trial.version)
        standing.trial = standing.fallback = None
    if serving is not None and serving.version in standing.barred:
        log.warning("standing.set_right path=%s version=%s: barred while it served", path, serving.version)
        bar = standing.barred.pop(serving.version)
        standing.note(
            "bar lifted", serving.version, reason=f"it served all the same; barred for: {bar.reason}"
        )


def write_standing(path: Path, text: str) -> None:
    """Replace the file as a whole, on disk before this returns. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def now_label() -> str:
    """Wall-clock time: UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
