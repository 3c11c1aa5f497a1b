"""The wire between port and motors: how long bytes take, and what may happen to them."""

from __future__ import annotations

import random

from pydantic import BaseModel, ConfigDict, Field

from hal.bench.emulated_bus import Piece, collision

_BITS_PER_BYTE = 10  # start, eight data, stop


class EmulatorFaults(BaseModel):
    """What goes wrong on an emulated bus. The default is nothing.

    ``drop`` and ``corrupt``: probability, per motor and reply, that its bytes vanish or lose a bit;
    ``garble``: that what the host sends loses one. ``delay_ms`` is added to each reply. ``silent_ids``
    neither hear nor answer. ``twin_id``: a further motor with this id, fresh from its box, hangs on the
    same bus and answers at the same time. ``hardware_error`` sets error bits in those motors; they stay
    until a reboot.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    drop: float = Field(default=0.0, ge=0.0, le=1.0)
    corrupt: float = Field(default=0.0, ge=0.0, le=1.0)
    garble: float = Field(default=0.0, ge=0.0, le=1.0)
    delay_ms: float = Field(default=0.0, ge=0.0, le=10_000.0)
    silent_ids: frozenset[int] = frozenset()
    twin_id: int | None = Field(default=None, ge=0, le=252)
    hardware_error: dict[int, int] = Field(default_factory=dict)


class Wire:
    """Wire time at ``baud`` and the faults on the way back, drawn from ``seed``."""

    def __init__(self, baud: int, enabled: bool, seed: int) -> None:
        self._byte_ns = round(_BITS_PER_BYTE * 1e9 / baud) if enabled else 0
        self._enabled = enabled
        self._free_at_ns = 0
        self._random = random.Random(seed)

    def instruction_ends(self, size: int, arrived_ns: int) -> int:
        """When the last bit of an instruction of ``size`` bytes has reached the motors."""
        self._free_at_ns = max(self._free_at_ns, arrived_ns) + size * self._byte_ns
        return self._free_at_ns

    def reply(self, pieces: list[Piece], faults: EmulatorFaults) -> tuple[bytes, int]:
        """(bytes as they reach the port, when the last of them does)."""
        if self._enabled:
            self._free_at_ns += sum(len(p.data) * self._byte_ns + p.delay_us * 1000 for p in pieces)
        due_ns = self._free_at_ns + round(faults.delay_ms * 1e6)
        return b"".join(self._damage(p.data, faults) for p in _collide(pieces)), due_ns

    def _damage(self, data: bytes, faults: EmulatorFaults) -> bytes:
        if faults.drop and self._random.random() < faults.drop:
            return b""
        if faults.corrupt and self._random.random() < faults.corrupt:
            return self._flip(data)
        return data

    def arriving(self, data: bytes, faults: EmulatorFaults) -> bytes:
        """What the motors hear of ``data`` sent by the host."""
        return self._flip(data) if faults.garble and self._random.random() < faults.garble else data

    def _flip(self, data: bytes) -> bytes:
        bit = self._random.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        return bytes(damaged)


def _collide(pieces: list[Piece]) -> list[Piece]:
    """Motors of the same id talk at once."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].motor_id == piece.motor_id:
            merged[-1] = collision(merged[-1], piece)
        else:
            merged.append(piece)
    return merged
