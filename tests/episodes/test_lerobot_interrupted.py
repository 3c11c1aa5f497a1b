"""A conversion that is killed, cut short or run twice at once: taken up, finished, taken away or refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lerobot_helpers import make_set

from episodes.errors import ImportRefusedError, StoreLockedError
from episodes.lerobot import convert as convert_module
from episodes.lerobot.convert import ConvertOptions, convert_v30
from episodes.lerobot.durable import only_writer
from episodes.lerobot.layout import Dataset
from episodes.lerobot.staging import Staging
from episodes.lerobot.v30 import STAGING as NAME

CHILD = """
import sys, time
from episodes.lerobot import convert
write = convert._Conversion._file
def slow(self, file):
    write(self, file)
    print(file.key or "data", flush=True)
    time.sleep(60 if not file.key else 0)
convert._Conversion._file = slow
convert.convert_v30(sys.argv[1], sys.argv[2], convert.ConvertOptions(workers=1))
"""


def test_a_killed_conversion_is_taken_up_where_it_was(tmp_path: Path) -> None:
    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    child = subprocess.Popen([sys.executable, "-c", CHILD, old, new], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("data")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (new / "meta").exists(), "nothing is published"
    report = convert_v30(old, new)
    assert (report.resumed, report.files, report.files_resumed) == (True, 2, 1)
    whole = tmp_path / "whole"
    convert_v30(old, whole)
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        assert (new / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_a_move_that_was_cut_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCutError(Exception):
        pass

    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    count = 0

    def rename(self: Any, source: Path, target: Path) -> None:
        nonlocal count
        if NAME not in target.parts:
            count += 1
            if count == 3:
                raise PowerCutError
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("episodes.files.FileLayer.rename", rename)
        with pytest.raises(PowerCutError):
            convert_v30(old, new)
    assert not (new / "meta/info.json").exists(), "the set is not there before it is whole"
    report = convert_v30(old, new)
    assert (report.episodes, report.skipped) == ({}, [0, 1, 2])
    assert len(Dataset(new).episodes) == 3


def test_a_changed_source_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_set(tmp_path / "old"), tmp_path / "new"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "check_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_v30(old, new)
    shutil.rmtree(old)
    make_set(old, (6, 9, 5))
    report = convert_v30(old, new)
    assert not report.resumed
    assert report.rows == 20


def test_what_an_interrupted_run_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there is nothing more to convert, and when what was made is wrong."""
    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    convert_v30(old, new, ConvertOptions(episodes=(0, 1)))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "check_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_v30(old, new)
    assert (new / NAME).exists()
    report = convert_v30(old, new, ConvertOptions(episodes=(0, 1)))
    assert (report.episodes, report.skipped) == ({}, [0, 1])
    assert not (new / NAME).exists()

    def wrong(report: Any, *_: Any) -> None:
        report.errors.append("rows are wrong")

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "check_rows", wrong)
        with pytest.raises(ImportRefusedError, match="failed its own checks: rows are wrong"):
            convert_v30(old, new)
    assert not (new / NAME).exists(), "what is wrong is not taken up again"
    assert convert_v30(old, new).episodes == {2: 2}


def test_a_torn_note_is_no_finished_file(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.begin({"a": 1})
    (staging.set / "file").write_text("x")
    staging.finish("data", staging.set / "file", [{"n": 1}, {"n": 2}])
    assert staging.is_finished("data")
    assert list(staging.results("data")) == [{"n": 1}, {"n": 2}]
    note = tmp_path / NAME / "done" / "data.jsonl"
    whole = note.read_bytes()
    for size in range(len(whole)):
        note.write_bytes(whole[:size])
        assert not staging.is_finished("data")


def test_two_conversions_into_one_set_are_refused(tmp_path: Path) -> None:
    old, new = make_set(tmp_path / "old"), tmp_path / "new"
    with only_writer(new), pytest.raises(StoreLockedError, match="is being written by process") as caught:
        convert_v30(old, new)
    assert "\n" not in str(caught.value)
    convert_v30(old, new)
