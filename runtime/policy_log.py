"""Every answer of the policy server in a ring of the run directory, so that a benchmark sees each one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from protos.ratchet.v1 import policy_pb2 as pb
from runtime.pictures import Packed
from runtime.ring import RingReader, RingWriter, create_ring

CAPACITY = 1024  # half a minute of answers in every tick
ANSWER = np.dtype(
    [
        ("tick", "<i8"),
        ("begun_ns", "<i8"),
        ("done_ns", "<i8"),
        ("exec_ms", "<f8"),
        ("queue_ms", "<f8"),
        ("batch", "<i8"),
        ("bytes", "<i8"),
        ("shared", "?"),
        ("jpeg", "?"),
    ]
)
"""One answer: the tick whose observation it is for, when it was begun and there (monotonic ns), what the
server says of its own time, how many observations were computed together, the bytes of its pictures in the
message, and whether they travelled in shared memory or as JPEG."""


class PolicyLog:
    """Writes ``run_dir/policy.answers``. Raises RingError when that cannot be made."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / "policy.answers"
        create_ring(path, ANSWER, CAPACITY)
        self._ring = RingWriter(path, ANSWER)

    def answered(
        self, response: pb.InferResponse, begun_s: float, done_s: float, packed: Packed | None
    ) -> None:
        """An answer was received; ``packed`` is None when its pictures were shared."""
        record = self._ring.record
        record["tick"], record["batch"] = response.tick, response.batch
        record["begun_ns"], record["done_ns"] = round(begun_s * 1e9), round(done_s * 1e9)
        record["exec_ms"], record["queue_ms"] = response.exec_ms, response.queue_ms
        record["bytes"] = 0 if packed is None else packed.size
        record["shared"] = packed is None
        record["jpeg"] = packed is not None and packed.encoding == "jpeg"
        self._ring.push()


def answer_reader(run_dir: Path) -> RingReader:
    """Reads what a running service's PolicyLog writes. Raises RingError when there is none."""
    return RingReader(run_dir / "policy.answers", ANSWER)
