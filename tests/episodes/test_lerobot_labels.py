"""Outcome, flags and take-overs go out with an export, as LeRobot can read them, and come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from episode_helpers import LOSSLESS, SPEC, TICK_NS, record_ticks
from lerobot_helpers import H264

from episodes.errors import ImportRefusedError
from episodes.lerobot.convert import convert_v30
from episodes.lerobot.exporter import ExportOptions, export_lerobot
from episodes.lerobot.importer import import_lerobot
from episodes.lerobot.labels import LABELS, TAKEN_OVER, Labels
from episodes.lerobot.layout import Dataset
from episodes.spec import InterventionRow
from episodes.store import EpisodeStore
from tools.commands.episodes import episodes as command

START = 5_000_000_000


def labelled(store: EpisodeStore, outcome: Any = "success") -> str:
    """An episode of 12 ticks from tick 150 on, with a flag on two of them and a take-over of three."""
    writer = store.begin(SPEC, config=LOSSLESS, started_ns=START)
    record_ticks(writer, 12, 150)
    first = 150 * TICK_NS
    writer.flag("stuck", first + 4 * TICK_NS, first + 5 * TICK_NS, float("inf"), {"joint": "elbow", "n": 3})
    writer.intervention(first + 7 * TICK_NS, first + 9 * TICK_NS, "leader arm")
    return writer.end(outcome, "a person said so").wait().id


@pytest.mark.parametrize("to", ["v2.1", "v3.0"])
@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_labels_come_back(store: EpisodeStore, tmp_path: Path, to: Any, outcome: str) -> None:
    ids = [labelled(store, "unknown"), labelled(store, outcome)]
    export_lerobot(store, ids, tmp_path / "set", ExportOptions(to=to, video=H264))
    dataset = Dataset(tmp_path / "set")
    table = dataset.table(dataset.episodes[1])
    assert table["next.success"].to_pylist() == [False] * 11 + [outcome == "success"]
    assert table["flagged"].to_pylist() == [row in (4, 5) for row in range(12)]
    assert table["is_intervention"].to_pylist() == [row in (7, 8, 9) for row in range(12)]
    with EpisodeStore.open(tmp_path / "back") as back:
        report = import_lerobot(tmp_path / "set", back)
        was, now = store.read(ids[1]), back.read(report.imported[1])
        assert back.read(report.imported[0]).meta.outcome == "unknown"
        assert now.meta.outcome == outcome
        assert set(now.streams) == {"action", "observation.state"}, "labels are no streams"
        origin = int(was.streams["action"].t_ns[0])
        assert [(f.kind, f.start_ns + origin, f.end_ns + origin, f.score, f.evidence) for f in now.flags] == [
            (f.kind, f.start_ns, f.end_ns, f.score, f.evidence) for f in was.flags
        ]
        assert [(i.start_ns + origin, i.end_ns + origin, i.by) for i in now.interventions] == [
            (i.start_ns, i.end_ns, i.by) for i in was.interventions
        ]
        other = import_lerobot(tmp_path / "set", back, outcome="unknown")
        assert other.skipped == [0, 1]


def test_converting_an_export_keeps_them(store: EpisodeStore, tmp_path: Path) -> None:
    ids = [labelled(store), labelled(store, "failure")]
    export_lerobot(store, ids, tmp_path / "old", ExportOptions(to="v2.1", video=H264))
    convert_v30(tmp_path / "old", tmp_path / "new")
    labels = [Labels(tmp_path / "new").of(i, 12) for i in range(2)]
    assert [(x.id, x.outcome) for x in labels if x] == [(ids[0], "success"), (ids[1], "failure")]
    again = export_lerobot(store, ids, tmp_path / "new", ExportOptions(video=H264))
    assert (again.episodes, again.skipped) == ({}, ids), "recognised wherever they came from"


def test_a_span_between_two_rows_marks_the_row_before() -> None:
    from episodes.lerobot.labels import Label, label_columns

    spans = tuple(InterventionRow(start_ns=a, end_ns=b, by="x") for a, b in ((14, 16), (-5, -1), (99, 200)))
    for span, rows in zip(spans, ([1], [], [3]), strict=True):
        label = Label(
            episode_index=0, length=4, id="a", digest="0" * 64, outcome="unknown", interventions=(span,)
        )
        found = label_columns(label, np.array([0, 10, 20, 30]))[TAKEN_OVER]
        assert np.flatnonzero(found).tolist() == rows


def test_the_command_keeps_or_replaces_the_outcome(store: EpisodeStore, tmp_path: Path) -> None:
    export_lerobot(store, [labelled(store, "failure")], tmp_path / "set", ExportOptions(video=H264))
    for number, (more, outcome) in enumerate([([], "failure"), (["--outcome", "success"], "success")]):
        target = tmp_path / f"back{number}"
        arguments = ["import", str(tmp_path / "set"), "--store", str(target), *more]
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
        with EpisodeStore.open(target, mode="r") as back:
            assert back.read(back.ids()[0]).meta.outcome == outcome


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"length": 11}, "says 11 rows for episode 0, which has 12"),
        ({"outcome": "splendid"}, "outcome"),
        ({"id": "../../x"}, "id"),
        ({"flags": [{"kind": "x"}]}, r"flags\.0\.start_ns"),
        ({"surprise": 1}, "surprise"),
        ({"episode_index": "0"}, "a line for no episode"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(
    store: EpisodeStore, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    export_lerobot(store, [labelled(store)], tmp_path / "set", ExportOptions(video=H264))
    path = tmp_path / "set" / LABELS
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with EpisodeStore.open(tmp_path / "back") as back:
        with pytest.raises(ImportRefusedError, match=expected) as caught:
            import_lerobot(tmp_path / "set", back)
        assert "\n" not in str(caught.value)
        assert back.ids() == []
