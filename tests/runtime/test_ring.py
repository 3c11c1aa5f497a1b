"""The shared-memory ring: nothing torn, nothing lost unsaid, a writer that dies and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import RingError
from runtime.ring import RingReader, RingWriter, create_ring, frame_dtype, memory_fence

RECORD = np.dtype([("n", "<i8"), ("values", "<f8", (400,))])
ROOT = Path(__file__).resolve().parents[2]

# Writes records whose every value is the record's number, as fast as it can, until killed.
FAST_WRITER = """
import sys, numpy as np
from pathlib import Path
from runtime.ring import RingWriter
writer = RingWriter(Path(sys.argv[1]), np.dtype([("n", "<i8"), ("values", "<f8", (400,))]))
n = writer.head
while True:
    writer.record["n"] = n
    writer.record["values"] = n
    writer.push()
    n += 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    create_ring(path, RECORD, 8)
    return path


def push(writer: RingWriter, *numbers: int) -> None:
    for n in numbers:
        writer.record["n"] = n
        writer.record["values"] = n
        writer.push()


def test_empty_ring_has_nothing(path: Path) -> None:
    reader = RingReader(path, RECORD)
    assert reader.latest() is None
    first, records = reader.since(-1)
    assert (first, len(records)) == (0, 0)


def test_latest_and_since(path: Path) -> None:
    writer, reader = RingWriter(path, RECORD), RingReader(path, RECORD)
    push(writer, *range(5))
    newest = reader.latest()
    assert newest is not None
    assert (newest[0], int(newest[1]["n"])) == (4, 4)
    first, records = reader.since(1)
    assert first == 2
    assert records["n"].tolist() == [2, 3, 4]
    first, records = reader.since(4)
    assert len(records) == 0


def test_overwritten_records_are_seen_to_be_missing(path: Path) -> None:
    writer, reader = RingWriter(path, RECORD), RingReader(path, RECORD)
    push(writer, *range(21))
    first, records = reader.since(2)
    assert first == 13, "3 … 12 are gone, and the reader can tell"
    assert records["n"].tolist() == list(range(13, 21))


def test_what_was_read_stays_when_the_writer_goes_on(path: Path) -> None:
    writer, reader = RingWriter(path, RECORD), RingReader(path, RECORD)
    push(writer, 1)
    newest = reader.latest()
    push(writer, *range(2, 30))
    assert newest is not None
    assert (newest[1]["values"] == 1).all()


def test_a_half_written_record_is_never_returned(path: Path) -> None:
    writer, reader = RingWriter(path, RECORD), RingReader(path, RECORD)
    push(writer, *range(9))
    writer._words[9 % 8] = 2 * 9 + 1  # the writer stands in the middle of record 9, over record 1
    first, records = reader.since(-1)
    assert first == 2
    assert records["n"].tolist() == list(range(2, 9))
    assert reader._read(1) is None
    newest = reader.latest()
    assert newest is not None
    assert newest[0] == 8


def test_a_new_writer_carries_on(path: Path) -> None:
    reader = RingReader(path, RECORD)
    push(RingWriter(path, RECORD), 0, 1, 2)
    push(RingWriter(path, RECORD), 3)
    first, records = reader.since(-1)
    assert (first, records["n"].tolist()) == (0, [0, 1, 2, 3])


def test_never_torn_beside_a_writer_that_is_killed_and_comes_back(path: Path) -> None:
    reader = RingReader(path, RECORD)
    seen, highest = 0, -1
    for _ in range(2):
        before = reader.head
        writer = subprocess.Popen([sys.executable, "-c", FAST_WRITER, str(path)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 60
            while reader.head < before + 2000 and time.monotonic() < deadline:
                newest = reader.latest()
                _, records = reader.since(highest)
                for record in [*records, *([newest[1]] if newest else [])]:
                    assert (record["values"] == record["n"]).all(), "torn"
                    seen += 1
                if len(records):
                    assert (np.diff(records["n"]) == 1).all()
                    highest = int(records["n"][-1])
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        assert reader.head >= before + 2000
    assert seen > 100


def test_frames(tmp_path: Path) -> None:
    dtype = frame_dtype(4, 6)
    create_ring(tmp_path / "f", dtype, 2)
    writer, reader = RingWriter(tmp_path / "f", dtype), RingReader(tmp_path / "f", dtype)
    picture = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    writer.record["image"], writer.record["seq"] = picture, 7
    writer.push()
    newest = reader.latest()
    assert newest is not None
    np.testing.assert_array_equal(newest[1]["image"], picture)
    assert newest[1]["image"].shape == (4, 6, 3)


def test_refuses_what_is_not_its_ring(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RingError, match="other records"):
        RingReader(path, np.dtype([("n", "<i8"), ("values", "<f4", (800,))]))
    with pytest.raises(RingError, match="cannot open"):
        RingReader(tmp_path / "absent", RECORD)
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    with pytest.raises(RingError, match="other records"):
        RingReader(tmp_path / "noise", RECORD)
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(RingError, match="not a ring"):
        RingReader(tmp_path / "short", RECORD)
    with pytest.raises(RingError, match="cannot make"):
        create_ring(tmp_path / "no" / "ring", RECORD, 8)
    with pytest.raises(ValueError):
        create_ring(path, RECORD, 1)


def test_reader_cannot_write(path: Path) -> None:
    reader = RingReader(path, RECORD)
    with pytest.raises(ValueError, match="read-only"):
        reader._words[0] = 1


def test_fence_is_callable() -> None:
    assert memory_fence() is None
