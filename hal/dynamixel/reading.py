"""Reading the state block of all motors at once, in whichever of four ways is fastest here.

Sync reads want the block at one address for all motors asked, so an arm of mixed models takes
one per address; bulk reads name an address per motor. The fast kinds return one chained packet.

A status packet does not say which read it answers, so a reply that missed its cycle would pass for
the next one's: a sample one cycle old, stamped as new. What arrived before an instruction is sent is
dropped by the port. Against later ones each lost cycle makes the next ask for one byte more, as replies
of another length are skipped; the surplus is cut off. Only a reply later than ``_SIZES`` lost cycles
(over 20 ms at servo rate) could still pass.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hal.dynamixel.block import BLOCK_BYTES
from hal.dynamixel.bringup import MotorInfo
from hal.dynamixel.packet import BROADCAST_ID, FAST_OVERHEAD, STATUS_OVERHEAD, Instruction, build
from hal.dynamixel.port import Port
from hal.dynamixel.replies import parse_fast_reply, parse_status_replies
from hal.dynamixel.tables import MODELS
from hal.errors import MotorError

_log = logging.getLogger(__name__)

Method = Literal["fast_bulk", "fast_sync", "bulk", "sync"]
METHODS: tuple[Method, ...] = ("fast_bulk", "fast_sync", "bulk", "sync")

_TRIALS = 5
_TURNAROUND_NS = 100_000  # what a motor takes to begin its reply, at most, with no return delay
_SIZES = min(model.indirect_count for model in MODELS.values()) - BLOCK_BYTES + 1
_LATEST_NS = 500_000_000  # after that no lost reply is still under way


@dataclass(frozen=True, slots=True)
class _Transaction:
    """One instruction and what it brings: ``rows`` are the motors' places in the arm."""

    instruction: bytes
    ids: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.intp]
    parse: Callable[..., int]
    size: int
    reply_bytes: int


class Reader:
    """Reads all blocks with one method. After ``read``, ``fresh`` bool (n,) tells whose reply was
    whole, ``bad`` int64 (n,) counts replies with a wrong CRC, ``errors`` uint8 (n,) are the
    motors' last error bytes."""

    def __init__(self, port: Port, infos: tuple[MotorInfo, ...], margin_ns: int, method: Method) -> None:
        self.method: Method = method
        self._port = port
        self._margin_ns = margin_ns
        self._plans = [_plan(infos, method, BLOCK_BYTES + surplus) for surplus in range(_SIZES)]
        self._surplus = 0
        self._lost_ns = 0
        self._view = memoryview(bytearray(2048))
        self._buffer = np.frombuffer(self._view, dtype=np.uint8)
        n = len(infos)
        self.fresh = np.zeros(n, dtype=bool)
        self.bad = np.zeros(n, dtype=np.int64)
        self.errors = np.zeros(n, dtype=np.uint8)

    def read(self, blocks: npt.NDArray[np.uint8]) -> int:
        """Fill the rows of ``blocks`` uint8 (n, 15) whose motor answered; returns when they were
        sampled, monotonic ns. A lost reply costs its wire time and the margin. Raises PortError."""
        first_ns = 0
        complete = True
        for transaction in self._plans[self._surplus]:
            sampled_ns, answered = self._exchange(transaction, blocks)
            first_ns = first_ns or sampled_ns
            complete &= answered
        if not complete:
            self._surplus = (self._surplus + 1) % _SIZES
            self._lost_ns = first_ns
        elif first_ns - self._lost_ns > _LATEST_NS:
            self._surplus = 0
        return first_ns

    def _exchange(self, transaction: _Transaction, blocks: npt.NDArray[np.uint8]) -> tuple[int, bool]:
        """(when it was sampled, whether every motor answered)."""
        byte_ns = self._port.byte_ns
        wanted = len(transaction.ids)
        part = np.zeros((wanted, transaction.size), dtype=np.uint8)
        errors = np.zeros(wanted, dtype=np.uint8)
        fresh = np.zeros(wanted, dtype=np.bool_)
        bad = np.zeros(wanted, dtype=np.int64)
        sampled_ns = self._port.send(transaction.instruction) + round(len(transaction.instruction) * byte_ns)
        deadline_ns = sampled_ns + round(transaction.reply_bytes * byte_ns) + _TURNAROUND_NS + self._margin_ns
        filled = answered = 0
        while filled < len(self._buffer):
            count = self._port.receive_into(self._view[filled:], deadline_ns)
            if count == 0:
                break
            filled += count
            answered = transaction.parse(self._buffer, filled, transaction.ids, part, errors, fresh, bad)
            if answered == wanted:
                break
        rows = transaction.rows
        self.fresh[rows], self.bad[rows], self.errors[rows] = fresh, bad, errors
        blocks[rows[fresh]] = part[fresh, :BLOCK_BYTES]
        return sampled_ns, answered == wanted


def choose(port: Port, infos: tuple[MotorInfo, ...], margin_ns: int, methods: tuple[Method, ...]) -> Reader:
    """The fastest of ``methods`` that brings every motor's block most of the times it is tried.

    A single method is taken at its word. Raises MotorError when none of several works.
    """
    blocks = np.zeros((len(infos), BLOCK_BYTES), dtype=np.uint8)
    best: tuple[float, Reader] | None = None
    for method in methods:
        reader = Reader(port, infos, margin_ns, method)
        reader.read(blocks)  # compiles or loads the parsers
        if len(methods) == 1:
            return reader
        times: list[float] = []
        for _ in range(_TRIALS):
            start = time.monotonic_ns()
            reader.read(blocks)
            if reader.fresh.all():
                times.append((time.monotonic_ns() - start) * 1e-6)
        _log.debug("read method tried: method=%s complete=%d/%d", method, len(times), _TRIALS)
        if 2 * len(times) > _TRIALS and (best is None or statistics.median(times) < best[0]):
            best = statistics.median(times), reader
    if best is None:
        raise MotorError(
            f"the motors on {port.path} do not answer group reads ({', '.join(methods)})",
            "check the cables; update the motors' firmware if single reads work in `ratchet doctor`",
        )
    return best[1]


def _plan(infos: tuple[MotorInfo, ...], method: Method, size: int) -> list[_Transaction]:
    fast = method.startswith("fast")
    if method.endswith("bulk"):
        groups = [list(range(len(infos)))]
    else:
        addresses = dict.fromkeys(info.block_address for info in infos)
        groups = [[i for i, info in enumerate(infos) if info.block_address == a] for a in addresses]
    return [_transaction(infos, group, method, fast, size) for group in groups]


def _transaction(
    infos: tuple[MotorInfo, ...], group: list[int], method: Method, fast: bool, size: int
) -> _Transaction:
    count = size.to_bytes(2, "little")
    ids = bytes(infos[i].spec.id for i in group)
    if method.endswith("bulk"):
        params = b"".join(
            bytes((infos[i].spec.id,)) + infos[i].block_address.to_bytes(2, "little") + count for i in group
        )
        code = Instruction.FAST_BULK_READ if fast else Instruction.BULK_READ
    else:
        params = infos[group[0]].block_address.to_bytes(2, "little") + count + ids
        code = Instruction.FAST_SYNC_READ if fast else Instruction.SYNC_READ
    per_motor = size + (FAST_OVERHEAD if fast else STATUS_OVERHEAD)
    return _Transaction(
        instruction=build(BROADCAST_ID, code, params),
        ids=np.array(list(ids), dtype=np.uint8),
        rows=np.array(group, dtype=np.intp),
        parse=parse_fast_reply if fast else parse_status_replies,
        size=size,
        reply_bytes=len(group) * per_motor + (8 if fast else 0),
    )
