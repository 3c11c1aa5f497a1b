"""The peer of `ratchet bench bus`: ROBOTIS' own SDK doing the same transactions, as LeRobot uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from dynamixel_sdk import COMM_SUCCESS, GroupSyncRead, GroupSyncWrite, PacketHandler, PortHandler

from hal.dynamixel.arm import ArmSpec
from hal.dynamixel.block import BLOCK, BLOCK_BYTES, DIRECT_BLOCK
from hal.errors import PortError

_POSITION_BYTES = 4


class SdkBus:
    """Group sync reads of each motor's state block, and one group sync write of the goals.

    ``blocks``: motor id → where its block lies, as ``ArmBus`` has set it up, ``size`` bytes each. Motors
    whose blocks lie at different addresses take one group each: a sync read has one address.
    """

    TIMEOUT_MS = 34.0
    """What the SDK waits for a lost reply: its latency constant of 16 ms twice, and 2 ms."""

    def __init__(self, spec: ArmSpec, path: str, baud: int, blocks: Mapping[int, int], size: int) -> None:
        self._port = PortHandler(path)
        if not self._port.openPort() or not self._port.setBaudRate(baud):
            raise PortError(f"the SDK cannot open {path} at {baud} baud", "see that nothing else uses it")
        packets = PacketHandler(2.0)
        self._ids = spec.ids
        self._where = dict(blocks)
        fields = (BLOCK if size == BLOCK_BYTES else DIRECT_BLOCK).fields
        assert fields is not None
        self._position_at = int(fields["position"][1])
        self._reads: dict[int, GroupSyncRead] = {}
        for motor_id, address in blocks.items():
            if address not in self._reads:
                self._reads[address] = GroupSyncRead(self._port, packets, address, size)
            self._reads[address].addParam(motor_id)
        goal = spec.motors[0].model["Goal_Position"]
        self._write = GroupSyncWrite(self._port, packets, goal.address, goal.size)

    def read(self) -> bool:
        """One read of everything; whether all motors answered."""
        results = [group.txRxPacket() for group in self._reads.values()]
        return all(result == COMM_SUCCESS for result in results)

    def positions(self) -> list[bytes]:
        """Each motor's position as read last, as its register has it."""
        rows = []
        for motor_id in self._ids:
            address = self._where[motor_id]
            ticks = int(self._reads[address].getData(motor_id, address + self._position_at, _POSITION_BYTES))
            rows.append((ticks & 0xFFFFFFFF).to_bytes(_POSITION_BYTES, "little"))
        return rows

    def write(self, goals: list[bytes]) -> None:
        """Send ``goals``, one a motor."""
        self._write.clearParam()
        for motor_id, goal in zip(self._ids, goals, strict=True):
            self._write.addParam(motor_id, goal)
        self._write.txPacket()

    def close(self) -> None:
        self._port.closePort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
