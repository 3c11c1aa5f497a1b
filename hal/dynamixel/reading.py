"""Reading the state block of all motors at once, in whichever of four ways is fastest here.

Sync reads want the block at one address for all motors asked, so an arm of mixed models takes
one per address; bulk reads name an address per motor. The fast kinds return one chained packet, of which one
damaged byte costs every motor behind it; so the motors that are missing are asked again in the same cycle,
by a plain bulk read in which each answers for itself.

A status packet does not say which read it answers, so a reply that missed its cycle would pass for
the next one's: a sample one cycle old, stamped as new. What arrived before a cycle is dropped by the port.
Against later ones each lost transaction makes the next of its kind ask for one byte more, as replies
of another length are skipped; the surplus is cut off. Only a reply that is later than ``_SIZES`` lost
transactions of its kind could still pass. Within a cycle a reply to an earlier attempt is as good as
one to the last, with its own time.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
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
_BUFFER_BYTES = 2048  # a cycle's replies with two retries are 600
_TURNAROUND_NS = 100_000  # what a motor takes to begin its reply, at most, with no return delay
_SIZES = min(model.indirect_count for model in MODELS.values()) - BLOCK_BYTES + 1
_LATEST_NS = 500_000_000  # after that no lost reply is still under way


class _Transaction:
    """One instruction and what it brings; ``rows`` are the motors' places in the arm.

    Its arrays are filled by ``parse`` and live as long as it does: a cycle allocates nothing.
    """

    def __init__(
        self, instruction: bytes, ids: bytes, rows: list[int], fast: bool, size: int, delay_ns: int
    ) -> None:
        n = len(ids)
        self.delay_ns = delay_ns
        self.instruction = instruction
        self.fast = fast
        self.ids = np.array(list(ids), dtype=np.uint8)
        self.rows = np.array(rows, dtype=np.intp)
        self.whole = rows == list(range(n))
        self.reply_bytes = n * (size + (FAST_OVERHEAD if fast else STATUS_OVERHEAD)) + (8 if fast else 0)
        self.part = np.zeros((n, size), dtype=np.uint8)
        self.errors = np.zeros(n, dtype=np.uint8)
        self.fresh = np.zeros(n, dtype=np.bool_)
        self.bad = np.zeros(n, dtype=np.int64)
        self._parse: Callable[..., int] = parse_fast_reply if fast else parse_status_replies
        self.sampled_ns = 0

    def parse(self, buffer: npt.NDArray[np.uint8], filled: int) -> int:
        """How many motors have answered in ``buffer[:filled]``."""
        return self._parse(buffer, filled, self.ids, self.part, self.errors, self.fresh, self.bad)


class Reader:
    """Reads all blocks with one method. After ``read``, for each motor, (n,): ``fresh`` bool, whether a whole
    reply came; ``sampled_ns`` int64, when it was sampled (of fresh ones); ``errors`` uint8, its last error
    byte; and int64 counts of this cycle: ``bad`` replies with a wrong CRC, ``timeouts``, ``retried``."""

    def __init__(
        self, port: Port, infos: tuple[MotorInfo, ...], margin_ns: int, method: Method, retries: int = 0
    ) -> None:
        self.method: Method = method
        self._port = port
        self._infos = infos
        self._margin_ns = margin_ns
        self._retries = retries
        self._size = infos[0].block_bytes
        self._plans = [_plan(infos, method, self._size + surplus) for surplus in range(_SIZES)]
        self._again: dict[tuple[bytes, int], _Transaction] = {}
        self._surplus = {True: 0, False: 0}
        self._lost_ns = 0
        self._view = memoryview(bytearray(_BUFFER_BYTES))
        self._buffer = np.frombuffer(self._view, dtype=np.uint8)
        n = len(infos)
        self.fresh = np.zeros(n, dtype=bool)
        self.sampled_ns = np.zeros(n, dtype=np.int64)
        self.errors = np.zeros(n, dtype=np.uint8)
        self.bad = np.zeros(n, dtype=np.int64)
        self.timeouts = np.zeros(n, dtype=np.int64)
        self.retried = np.zeros(n, dtype=np.int64)

    def read(self, blocks: npt.NDArray[np.uint8]) -> int:
        """Fill the rows of ``blocks`` uint8 (n, size) whose motor answered; returns when the first of them
        was sampled, monotonic ns; what a retry brought is newer. A lost reply costs its wire time and the
        margin. Raises PortError."""
        for counts in (self.bad, self.timeouts, self.retried):
            counts[:] = 0
        self.fresh[:] = False
        asked: list[_Transaction] = []
        filled = 0
        for transaction in self._plans[self._surplus[self.method.startswith("fast")]]:
            filled = self._exchange(transaction, asked, filled)
        self._take(asked, blocks)
        for _ in range(self._retries):
            if self.fresh.all():
                break
            self.retried += ~self.fresh
            filled = self._exchange(self._missing(), asked, filled)
            self._take(asked, blocks)
        if self.fresh.any():
            sampled_ns = int(self.sampled_ns[self.fresh].min())
        else:
            sampled_ns = asked[-1].sampled_ns
        if self._lost_ns and sampled_ns - self._lost_ns > _LATEST_NS:
            self._surplus, self._lost_ns = {True: 0, False: 0}, 0
        return sampled_ns

    @property
    def wire_ns(self) -> float:
        """What one read takes on the wire in both directions, return delays included."""
        wire_bytes = sum(len(plan.instruction) + plan.reply_bytes for plan in self._plans[0])
        return wire_bytes * self._port.byte_ns + sum(plan.delay_ns for plan in self._plans[0])

    @property
    def troubled(self) -> bool:
        """Something did not go at once in this cycle."""
        return bool(self.timeouts.any() or self.bad.any() or self.retried.any())

    def _missing(self) -> _Transaction:
        """A bulk read of the motors that have not answered in this cycle."""
        key = (self.fresh.tobytes(), self._surplus[False])
        if key not in self._again:
            group = np.flatnonzero(~self.fresh).tolist()
            self._again[key] = _transaction(self._infos, group, "bulk", self._size + key[1])
        return self._again[key]

    def _exchange(self, transaction: _Transaction, asked: list[_Transaction], filled: int) -> int:
        """Send one instruction and wait for its replies; those to ``asked``, the cycle's earlier ones,
        count too. Returns how much of the buffer is filled."""
        byte_ns = self._port.byte_ns
        sent_ns = self._port.send(transaction.instruction, fresh=not asked)
        transaction.sampled_ns = sent_ns + round(len(transaction.instruction) * byte_ns)
        reply_ns = round(transaction.reply_bytes * byte_ns) + transaction.delay_ns + _TURNAROUND_NS
        deadline_ns = transaction.sampled_ns + reply_ns + self._margin_ns
        answered = transaction.parse(self._buffer, 0)
        while answered < len(transaction.ids) and filled < _BUFFER_BYTES:
            count = self._port.receive_into(self._view[filled:], deadline_ns)
            if count == 0:
                break
            filled += count
            answered = transaction.parse(self._buffer, filled)
            if asked and self._all_there(transaction, asked, filled):
                break
        asked.append(transaction)
        if answered < len(transaction.ids):
            self.timeouts[transaction.rows] += ~transaction.fresh & (transaction.bad == 0)
            self._lost_ns = transaction.sampled_ns
            self._surplus[transaction.fast] = (self._surplus[transaction.fast] + 1) % _SIZES
        return filled

    def _all_there(self, last: _Transaction, asked: list[_Transaction], filled: int) -> bool:
        """Whether late replies to earlier attempts make waiting for ``last`` needless."""
        there = np.zeros(len(self._infos), dtype=bool)
        there[last.rows] = last.fresh
        for transaction in asked:
            transaction.parse(self._buffer, filled)
            there[transaction.rows] |= transaction.fresh
        return bool(there[last.rows].all())

    def _take(self, asked: list[_Transaction], blocks: npt.NDArray[np.uint8]) -> None:
        """What the cycle has brought so far; a later transaction's sample replaces an earlier one's."""
        self.bad[:] = 0
        for transaction in asked:
            rows, fresh = transaction.rows, transaction.fresh
            self.bad[rows] += transaction.bad
            self.errors[rows] = np.where(fresh, transaction.errors, self.errors[rows])
            if fresh.all() and transaction.whole and len(rows) == len(blocks):
                blocks[:] = transaction.part[:, : self._size]
                self.fresh[:] = True
                self.sampled_ns[:] = transaction.sampled_ns
                continue
            rows = rows[fresh]
            blocks[rows] = transaction.part[fresh, : self._size]
            self.fresh[rows] = True
            self.sampled_ns[rows] = transaction.sampled_ns


def choose(
    port: Port, infos: tuple[MotorInfo, ...], margin_ns: int, methods: tuple[Method, ...], retries: int = 0
) -> Reader:
    """The fastest of ``methods`` that brings every motor's block most of the times it is tried.

    A single method is taken at its word. Raises MotorError when none of several works.
    """
    blocks = np.zeros((len(infos), infos[0].block_bytes), dtype=np.uint8)
    best: tuple[float, Reader] | None = None
    for method in methods:
        reader = Reader(port, infos, margin_ns, method, retries)
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
    if method.endswith("bulk"):
        groups = [list(range(len(infos)))]
    else:
        addresses = dict.fromkeys(info.block_address for info in infos)
        groups = [[i for i, info in enumerate(infos) if info.block_address == a] for a in addresses]
    return [_transaction(infos, group, method, size) for group in groups]


def _transaction(infos: tuple[MotorInfo, ...], group: list[int], method: Method, size: int) -> _Transaction:
    fast = method.startswith("fast")
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
    # In a fast read the motors behind the first one follow it without a delay of their own.
    delays_ns = [infos[i].return_delay_ns for i in group]
    delay_ns = delays_ns[0] if fast else sum(delays_ns)
    return _Transaction(build(BROADCAST_ID, code, params), ids, group, fast, size, delay_ns)
