"""What a person and the monitors said about exported episodes: outcome, flags, take-overs.

LeRobot has no place for them. They stand in ``meta/ratchet_episodes.jsonl``, a line per episode, times in
ns from its first row; and, so that LeRobot's users see something of them, in boolean columns of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.metadata import json_lines
from episodes.reader import Episode
from episodes.spec import EpisodeId, FlagRow, Frozen, InterventionRow, Outcome

LABELS = "meta/ratchet_episodes.jsonl"
SUCCESS, FLAGGED, TAKEN_OVER = "next.success", "flagged", "is_intervention"
COLUMNS = (SUCCESS, FLAGGED, TAKEN_OVER)
_SPANS = 100_000  # flags, or take-overs, of one episode
_Span = TypeVar("_Span", FlagRow, InterventionRow)


class Label(Frozen):
    """One episode of a set: which of Ratchet's it was, and what was said about it.

    ``columns``: those of COLUMNS made from it, which are no data of the episode's own.
    """

    episode_index: int = Field(ge=0, le=bounds.EPISODES)
    length: int = Field(ge=1, le=bounds.LENGTH)
    id: EpisodeId
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    outcome: Outcome
    reason: str = Field(default="", max_length=10_000)
    flags: Annotated[tuple[FlagRow, ...], Field(max_length=_SPANS)] = ()
    interventions: Annotated[tuple[InterventionRow, ...], Field(max_length=_SPANS)] = ()
    columns: Annotated[tuple[str, ...], Field(max_length=len(COLUMNS))] = ()

    @property
    def identity(self) -> str:
        """Equal for the same episode with the same data, wherever it was exported to."""
        return f"{self.id} {self.digest}"


def label_of(episode: Episode, number: int, start_ns: int, length: int, columns: tuple[str, ...]) -> Label:
    """The label of ``episode`` as number ``number`` of a set whose first row was at ``start_ns``."""
    meta = episode.meta
    return Label(
        episode_index=number, length=length, id=episode.id, digest=episode.digest, outcome=meta.outcome,
        reason=meta.reason, flags=tuple(_moved(f, start_ns) for f in meta.flags),
        interventions=tuple(_moved(i, start_ns) for i in meta.interventions), columns=columns,
    )  # fmt: skip


def _moved(span: _Span, start_ns: int) -> _Span:
    return span.model_copy(update={"start_ns": span.start_ns - start_ns, "end_ns": span.end_ns - start_ns})


def label_columns(label: Label, t_ns: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """COLUMNS for rows at ``t_ns`` from the first: success only in the last row, spans where they are."""
    success = np.zeros(len(t_ns), bool)
    success[-1] = label.outcome == "success"
    return {SUCCESS: success, FLAGGED: _in(label.flags, t_ns), TAKEN_OVER: _in(label.interventions, t_ns)}


def _in(spans: Iterable[FlagRow | InterventionRow], t_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows within a span; of one that lies between two rows, the row before it."""
    out = np.zeros(len(t_ns), bool)
    for span in spans:
        first = int(np.searchsorted(t_ns, span.start_ns, side="left"))
        last = int(np.searchsorted(t_ns, span.end_ns, side="right"))
        out[max(0, min(first, last - 1)) : last] = True
    return out


class Labels:
    """Where in the labels of a set each episode stands; they are read when asked for."""

    def __init__(self, root: Path) -> None:
        """Raises ImportRefusedError when the file is malformed or too large."""
        self._path = root / LABELS
        self._offsets: dict[int, int] = {}
        if self._path.exists():
            for offset, row in json_lines(self._path):
                index = row.get("episode_index")
                if not isinstance(index, int) or index in self._offsets:
                    raise ImportRefusedError(f"{self._path} has a line for no episode, or a second one",
                                             "remove the file to do without it")  # fmt: skip
                self._offsets[index] = offset

    def of(self, episode: int, length: int) -> Label | None:
        """The label of an episode of ``length`` rows; None when there is none for it.

        Raises ImportRefusedError when it is malformed or belongs to another episode.
        """
        if episode not in self._offsets:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[episode])
            row = bounds.json_line(file, self._path)
        try:
            label = Label.model_validate_json(json.dumps(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ImportRefusedError(
                f"{self._path}, episode {episode}: {where}: {first['msg']}",
                "remove the file to do without it",
            ) from error
        if label.length != length:
            raise ImportRefusedError(
                f"{self._path} says {label.length} rows for episode {episode}, which has {length}",
                "the set was changed after it was exported: remove the file to do without it",
            )
        return label


def label_line(label: Label) -> str:
    """The line of a label."""
    return json.dumps(label.model_dump(), ensure_ascii=False) + "\n"
