"""A reply that comes late never passes for the reply to something asked after it."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import pytest

from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.block import BLOCK_BYTES
from hal.dynamixel.bringup import MotorInfo
from hal.dynamixel.link import Link
from hal.dynamixel.packet import FAST_OVERHEAD, build_fast_status, build_status
from hal.dynamixel.port import Port
from hal.dynamixel.reading import METHODS, Method, Reader
from hal.errors import MotorError

MARGIN_NS = 1_000_000
MOTORS = KOCH_FOLLOWER.motors
INFOS = tuple(MotorInfo(motor, 52, 3, 224) for motor in MOTORS)
FIRST = MOTORS[0]


class ScriptedPort(Port):
    """A port whose replies are written down: ``script`` has, per instruction, what then arrives."""

    def __init__(self, script: list[list[bytes]]) -> None:
        super().__init__("/dev/scripted", 1_000_000)
        self.script = deque(script)
        self.sent: list[bytes] = []
        self._coming: deque[bytes] = deque()

    def send(self, data: bytes, *, fresh: bool = True) -> int:
        self.sent.append(data)
        self._coming = deque(self.script.popleft())
        return time.monotonic_ns()

    def receive_into(self, buffer: memoryview, deadline_ns: int) -> int:
        if not self._coming:
            time.sleep(max(0, deadline_ns - time.monotonic_ns()) * 1e-9)
            return 0
        data = self._coming.popleft()
        buffer[: len(data)] = data
        return len(data)


def group_reply(method: Method, size: int, value: int) -> bytes:
    """All motors' blocks, every byte ``value``, as ``method`` returns them."""
    data = bytes([value]) * size
    if not method.startswith("fast"):
        return b"".join(build_status(motor.id, 0, data) for motor in MOTORS)
    parts = [(0, motor.id, data) for motor in MOTORS]
    return b"".join(build_fast_status(parts, len(MOTORS) * (size + FAST_OVERHEAD)))


def asked_bytes(method: Method, instruction: bytes) -> int:
    at = 8 + (3 if method.endswith("bulk") else 2)
    return instruction[at] | instruction[at + 1] << 8


@pytest.mark.parametrize("method", METHODS)
def test_the_late_reply_of_a_lost_cycle_is_skipped(method: Method) -> None:
    late, right = group_reply(method, BLOCK_BYTES, 1), group_reply(method, BLOCK_BYTES + 1, 2)
    reader = Reader(ScriptedPort([[], [late, right], [late]]), INFOS, MARGIN_NS, method)
    blocks = np.zeros((len(MOTORS), BLOCK_BYTES), dtype=np.uint8)
    reader.read(blocks)
    assert not reader.fresh.any()
    reader.read(blocks)
    assert reader.fresh.all()
    assert (blocks == 2).all()
    reader.read(blocks)
    assert not reader.fresh.any()
    assert (blocks == 2).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_bus_that_stays_one_cycle_behind_is_lost_not_old(method: Method) -> None:
    port = ScriptedPort([[]])
    reader = Reader(port, INFOS, MARGIN_NS, method)
    blocks = np.zeros((len(MOTORS), BLOCK_BYTES), dtype=np.uint8)
    for cycle in range(12):
        reader.read(blocks)
        assert not reader.fresh.any()
        port.script.append([group_reply(method, asked_bytes(method, port.sent[-1]), cycle)])


def test_after_a_while_without_loss_nothing_extra_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.dynamixel.reading._LATEST_NS", 0)
    replies = [group_reply("bulk", BLOCK_BYTES + n, 1) for n in (1, 0)]
    port = ScriptedPort([[], [replies[0]], [replies[1]]])
    reader = Reader(port, INFOS, MARGIN_NS, "bulk")
    blocks = np.zeros((len(MOTORS), BLOCK_BYTES), dtype=np.uint8)
    for _ in range(3):
        reader.read(blocks)
    assert reader.fresh.all()
    assert [asked_bytes("bulk", sent) - BLOCK_BYTES for sent in port.sent] == [0, 1, 0]


def test_a_late_group_reply_is_not_the_answer_to_a_single_read() -> None:
    late, right = group_reply("bulk", BLOCK_BYTES, 1), build_status(FIRST.id, 0, b"\x07")
    acknowledgement = build_status(FIRST.id, 0, b"")
    link = Link(ScriptedPort([[late, acknowledgement, right]]), MARGIN_NS, 1)
    assert link.read_bytes(FIRST, 64, 1) == b"\x07"
    assert link.stale == len(MOTORS) + 1
    assert link.retries == 0


def test_nothing_but_late_replies_is_no_answer() -> None:
    late = group_reply("bulk", BLOCK_BYTES, 1)
    link = Link(ScriptedPort([[late], [late]]), MARGIN_NS, 2)
    with pytest.raises(MotorError, match="does not answer"):
        link.read_bytes(FIRST, 64, 1)


def test_a_refusal_is_an_answer() -> None:
    link = Link(ScriptedPort([[build_status(FIRST.id, 7, b"")]]), MARGIN_NS, 1)
    with pytest.raises(MotorError, match="refuses to read 1 bytes at 64"):
        link.read_bytes(FIRST, 64, 1)


def test_the_late_twin_of_a_retried_read_passes_by() -> None:
    first, second = build_status(FIRST.id, 0, b"\x01"), build_status(FIRST.id, 0, b"\x01")
    port = ScriptedPort([[], [first, second], [build_status(FIRST.id, 0, b"\x02")]])
    link = Link(port, MARGIN_NS, 2)
    assert link.read_bytes(FIRST, 64, 1) == b"\x01"
    assert (link.retries, link.stale) == (1, 1)
    assert link.read_bytes(FIRST, 70, 1) == b"\x02"
