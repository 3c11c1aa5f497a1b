"""Flags a joint that pushes without moving, or whose servo reports that it is overloaded."""

from __future__ import annotations

from hal.types import JOINTS
from runtime.monitors.config import MonitorConfig
from runtime.monitors.row import MonitorRow
from runtime.nouns import Flag

_ARM = len(JOINTS) - 1
#: Bits of the servo's hardware error status (XL330 and XL430 e-Manual, address 70).
HARDWARE_BITS = {0x04: "overheating", 0x08: "encoder", 0x10: "electrical shock", 0x20: "overload"}
_ANY_BIT = sum(HARDWARE_BITS)


class StallMonitor:
    """High effort while standing still short of the goal, held; or a hardware error bit, at once."""

    kind = "stall"

    def __init__(self, config: MonitorConfig) -> None:
        self._effort = config.stall_effort
        self._velocity = config.stall_velocity_rad_s
        self._distance = config.stall_distance_rad
        self._hold = config.stall_hold_ticks
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self._since = [0] * _ARM
        self._since_ns = [0] * _ARM

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        state = row.joints
        flag = self._hardware(row)
        effort, velocity = state.effort.tolist(), state.velocity.tolist()
        goal, position = row.goal.tolist(), state.position.tolist()
        worst, score = -1, 0.0
        for joint, limit in enumerate(self._effort):
            pushing = abs(effort[joint]) >= limit and abs(velocity[joint]) < self._velocity
            if not (pushing and abs(goal[joint] - position[joint]) > self._distance):
                self._since[joint] = 0
                continue
            if self._since[joint] == 0:
                self._since_ns[joint] = row.t_ns
            self._since[joint] += 1
            if self._since[joint] >= self._hold and abs(effort[joint]) / limit > score:
                worst, score = joint, abs(effort[joint]) / limit
        if flag is not None or worst < 0:
            return flag
        evidence = {"joint": JOINTS[worst], "effort": effort[worst], "limit": self._effort[worst]}
        return Flag(self.kind, self._since_ns[worst], row.t_ns, score, evidence)

    def _hardware(self, row: MonitorRow) -> Flag | None:
        for joint, byte in enumerate(row.joints.hardware_error.tolist()):
            if byte & _ANY_BIT:
                names = [name for bit, name in HARDWARE_BITS.items() if byte & bit]
                evidence = {"joint": JOINTS[joint], "hardware_error": byte, "meaning": ", ".join(names)}
                return Flag(self.kind, row.t_ns, row.t_ns, 1.0, evidence)
        return None
