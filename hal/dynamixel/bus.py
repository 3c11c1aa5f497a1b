"""One arm on its serial bus: read the whole state, write goals, at servo rate.

A cycle is ``read`` then ``write_goals``. Motors that stay silent coast on their last good values,
with their true age, for at most ``max_coast`` cycles; then ``read`` raises MotorError.
Not thread-safe: the process that owns the port owns this object.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hal.calibration import Calibration
from hal.dynamixel.arm import ArmSpec, MotorSpec
from hal.dynamixel.block import BLOCK_BYTES, EFFORT_UNIT, VELOCITY_UNIT, VOLTAGE_UNIT, as_rows
from hal.dynamixel.bringup import MotorInfo, bring_up
from hal.dynamixel.bus_types import COUNTERS, BusConfig, BusStats, MotorStats
from hal.dynamixel.errors import decode_hardware_error, hardware_remedy
from hal.dynamixel.link import Link
from hal.dynamixel.packet import ALERT_BIT, BROADCAST_ID, OVERHEAD, Instruction, build
from hal.dynamixel.port import Port
from hal.dynamixel.reading import METHODS, Reader, choose
from hal.dynamixel.tables import POSITION_MODE, TICKS_PER_TURN, WATCHDOG_TRIPPED, WATCHDOG_UNIT_MS
from hal.errors import MotorError, PortError
from hal.types import JointState, Vector

__all__ = ["COUNTERS", "ArmBus", "BusConfig", "BusStats", "MotorStats", "SetUp"]

_log = logging.getLogger(__name__)

SetUp = Callable[[Link, ArmSpec, Calibration, str, int], tuple[MotorInfo, ...]]
"""How ``open`` meets the motors: link, arm, calibration, port and baud in; what they are out."""

_GOAL = np.dtype([("id", "u1"), ("ticks", "<i4")])
_STALL_CYCLES = 2
_GOAL_HEAD = b"\x74\x00\x04\x00"  # Goal_Position (116), four bytes: the same in all models


class ArmBus:
    """The motors of ``spec`` on ``port`` at ``baud``, in joint angles (rad) and SI units."""

    def __init__(
        self, spec: ArmSpec, calibration: Calibration, port: str, baud: int, config: BusConfig | None = None
    ) -> None:
        calibration.check(spec)
        self.spec = spec
        self.calibration = calibration
        self.config = config or BusConfig()
        self._port = Port(port, baud)
        self._margin_ns = round(self.config.margin_ms * 1e6)
        self._link = Link(self._port, self._margin_ns, self.config.attempts)
        self._infos: tuple[MotorInfo, ...] = ()
        self._reader: Reader | None = None
        n = len(spec.motors)
        self._blocks = np.zeros((n, BLOCK_BYTES), dtype=np.uint8)
        self._seen_ns = np.zeros(n, dtype=np.int64)
        self._coasting = np.zeros(n, dtype=np.int64)
        self._counters = np.zeros((len(COUNTERS), n), dtype=np.int64)
        self._turn_ticks = np.zeros(n, dtype=np.int64)
        self._least = np.zeros(n, dtype=np.uint16)
        self._goals = np.zeros(n, dtype=_GOAL)
        self._goals["id"] = spec.ids
        limits = calibration.limits_rad
        self._low, self._high = limits[:, 0], limits[:, 1]
        self._cycles = self._reconnects = self._clipped = 0

    @property
    def motors(self) -> tuple[MotorInfo, ...]:
        """What the motors turned out to be at ``open``: firmware, operating mode."""
        return self._infos

    @property
    def is_open(self) -> bool:
        return self._port.is_open and self._reader is not None

    @property
    def stats(self) -> BusStats:
        rows = zip(self.spec.joints, np.vstack([self._counters, self._coasting]).T.tolist(), strict=True)
        lost, crc_errors, _, retries, *_ = self._counters.sum(axis=1).tolist()
        return BusStats(
            cycles=self._cycles,
            lost=lost,
            crc_errors=crc_errors + self._link.crc_errors,
            retries=retries + self._link.retries,
            stale=self._link.stale,
            reconnects=self._reconnects,
            clipped=self._clipped,
            method=self._reader.method if self._reader else "",
            motors=tuple(MotorStats(joint, *counts) for joint, counts in rows),
        )

    @property
    def counters(self) -> npt.NDArray[np.int64]:
        """The rows of ``COUNTERS`` for each motor, int64 (6, n); a view that goes on counting."""
        return self._counters

    @property
    def blocks(self) -> dict[int, int]:
        """Motor id → the address its state block is read at."""
        return {info.spec.id: info.block_address for info in self._infos}

    def wire_ms(self, write: bool = True) -> float:
        """What one cycle takes on the wire, ms: the read, its replies and their delays, and the goals."""
        written = OVERHEAD + len(_GOAL_HEAD) + self._goals.nbytes if write else 0
        return (self._require().wire_ns + written * self._port.byte_ns) * 1e-6

    def open(self, set_up: SetUp = bring_up) -> None:
        """Open the port, check and set up every motor, take a first sample. Torque stays as it is.

        Raises PortError or MotorError with the remedy; the port is closed again then.
        """
        self._port.open()
        try:
            self._infos = set_up(self._link, self.spec, self.calibration, self._port.path, self._port.baud)
            self._blocks = np.zeros((len(self._infos), self._infos[0].block_bytes), dtype=np.uint8)
            wanted = METHODS if self.config.read_method is None else (self.config.read_method,)
            self._reader = choose(self._port, self._infos, self._margin_ns, wanted, self.config.retries)
            self._first_sample()
        except BaseException:
            self.close()
            raise
        _log.info("bus open: arm=%s port=%s method=%s", self.spec.name, self._port.path, self._reader.method)

    def close(self) -> None:
        """Close the port; torque and watchdog stay as they are. Safe to call twice."""
        self._reader = None
        self._port.close()

    def reconnect(self) -> None:
        """After a PortError: close and ``open`` again. Raises PortError while the port is away."""
        self.close()
        self.open()
        self._reconnects += 1

    def read(self) -> JointState:
        """One bus cycle: the state of all motors.

        Raises PortError when the port vanished, MotorError when a motor has been silent for more
        than ``max_coast`` cycles, or has restarted: its block then reads as zeros, and zero ticks
        would pass for a position.
        """
        reader = self._require()
        self._cycles += 1
        sampled_ns = reader.read(self._blocks)
        fresh = reader.fresh
        self._seen_ns[fresh] = reader.sampled_ns[fresh]
        if reader.troubled or self._coasting.any():
            self._count(reader)
            if self._coasting.max() > self.config.max_coast:
                raise self._gone()
        if (as_rows(self._blocks)["voltage"] < self._least).any():
            raise self._restarted()
        return self._decode(sampled_ns)

    def _count(self, reader: Reader) -> None:
        """Keep the books of a cycle in which something did not go at once."""
        fresh = reader.fresh
        self._coasting += 1
        self._coasting[fresh] = 0
        lost, crc_errors, timeouts, retries, recovered, stalls = self._counters
        lost += ~fresh
        crc_errors += reader.bad
        timeouts += reader.timeouts
        retries += reader.retried
        recovered += fresh & (reader.retried > 0)
        stalls += self._coasting == _STALL_CYCLES

    def write_goals(self, position_rad: Vector) -> None:
        """Send goal positions, rad (n,), clipped to the calibrated range. Raises PortError, and
        ValueError when one is not finite."""
        self._require()
        wanted = np.asarray(position_rad, dtype=np.float64)
        if wanted.shape != self._low.shape:
            raise ValueError(f"{len(self._low)} goals are needed, not shape {wanted.shape}")
        goal = np.clip(wanted, self._low, self._high)
        self._clipped += bool((goal != wanted).any())
        self._goals["ticks"] = self.calibration.to_ticks(goal) + self._turn_ticks
        params = _GOAL_HEAD + self._goals.tobytes()
        self._port.send(build(BROADCAST_ID, Instruction.SYNC_WRITE, params))

    def set_torque(self, on: bool) -> None:
        """Energise or release all motors, checked motor by motor.

        Before energising, a tripped watchdog is cleared and each goal is set to the present
        position, so that nothing jumps. Raises MotorError (also for a hardware error), PortError.
        """
        self._require()
        if on:
            self._check_hardware()
            self.clear_watchdog()
            self._hold_here(self.spec.motors)
            for motor in self.spec.motors:
                self._link.write(motor, "Torque_Enable", 1)
            return
        self._link.broadcast_write(self.spec.motors, "Torque_Enable", 0)
        for motor in self.spec.motors:
            if self._link.read(motor, "Torque_Enable"):
                self._link.write(motor, "Torque_Enable", 0)

    def torque(self) -> npt.NDArray[np.bool_]:
        """Which motors are energised, bool (n,). Raises MotorError, PortError."""
        self._require()
        return np.array([bool(self._link.read(m, "Torque_Enable")) for m in self.spec.motors])

    def arm_watchdog(self, timeout_ms: float) -> None:
        """Motors with torque stop when the bus is quiet for ``timeout_ms`` (20 to 2540, rounded
        up to 20). Raises ValueError, MotorError, PortError."""
        units = math.ceil(timeout_ms / WATCHDOG_UNIT_MS)
        if not 1 <= units <= 127:
            raise ValueError(f"the bus watchdog takes 20 to 2540 ms, not {timeout_ms}")
        self._require()
        for motor in self.spec.motors:
            self._link.write(motor, "Bus_Watchdog", units)

    def disarm_watchdog(self) -> None:
        """Motors no longer mind a quiet bus; also clears a trip. Raises MotorError, PortError."""
        self._require()
        for motor in self.spec.motors:
            self._link.write(motor, "Bus_Watchdog", 0)

    def watchdog_tripped(self) -> tuple[str, ...]:
        """Joints whose watchdog has stopped them. Raises MotorError, PortError."""
        self._require()
        return tuple(motor.joint for motor in self._tripped())

    def clear_watchdog(self) -> None:
        """Clear the watchdog where it tripped; those motors hold where they stand instead of
        resuming an old goal. It is disarmed there afterwards. Raises MotorError, PortError."""
        self._require()
        tripped = self._tripped()
        for motor in tripped:
            self._link.write(motor, "Bus_Watchdog", 0)
        self._hold_here(tripped)

    def _tripped(self) -> tuple[MotorSpec, ...]:
        return tuple(m for m in self.spec.motors if self._link.read(m, "Bus_Watchdog") == WATCHDOG_TRIPPED)

    def _hold_here(self, motors: tuple[MotorSpec, ...]) -> None:
        modes = {info.spec.id: info.operating_mode for info in self._infos}
        for motor in motors:
            ticks = self._link.read(motor, "Present_Position")
            if modes[motor.id] == POSITION_MODE:
                ticks = max(0, min(ticks, TICKS_PER_TURN - 1))
            self._link.write(motor, "Goal_Position", ticks)

    def _check_hardware(self) -> None:
        for motor in self.spec.motors:
            bits = self._link.read(motor, "Hardware_Error_Status")
            if bits:
                names = ", ".join(decode_hardware_error(bits))
                raise MotorError(f"{motor} reports {names}", hardware_remedy(bits))

    def _require(self) -> Reader:
        if self._reader is None or not self._port.is_open:
            raise PortError(f"{self._port.path} is not open", "call open() or reconnect() first")
        return self._reader

    def _first_sample(self) -> None:
        """Every motor must answer once; its ticks then tell in which turn its encoder counts."""
        reader = self._require()
        missing = np.ones(len(self.spec.motors), dtype=bool)
        for _ in range(self.config.attempts + self.config.max_coast):
            reader.read(self._blocks)
            self._seen_ns[reader.fresh] = reader.sampled_ns[reader.fresh]
            missing &= ~reader.fresh
            if not missing.any():
                break
        else:
            raise self._link.no_answer(self.spec.motors[int(np.argmax(missing))])
        self._coasting[:] = 0
        self._least = np.minimum(
            as_rows(self._blocks)["voltage"], 1
        )  # a motor does not answer without supply
        ticks = as_rows(self._blocks)["position"].astype(np.int64)
        calibration = self.calibration
        self._turn_ticks = calibration.sign * calibration.turns(ticks) * TICKS_PER_TURN

    def _decode(self, sampled_ns: int) -> JointState:
        rows = as_rows(self._blocks)
        sign = self.calibration.sign
        return JointState(
            seq=self._cycles,
            t_ns=sampled_ns,
            position=self.calibration.to_rad(rows["position"] - self._turn_ticks),
            velocity=rows["velocity"] * (sign * VELOCITY_UNIT),
            effort=rows["effort"] * (sign * EFFORT_UNIT),
            temperature=rows["temperature"].astype(np.float64),
            voltage=rows["voltage"] * VOLTAGE_UNIT,
            hardware_error=self._hardware_errors(rows),
            moving=rows["moving"] != 0,
            age_ns=np.maximum(sampled_ns - self._seen_ns, 0),
        )

    def _hardware_errors(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
        """Error bits (n,); where the block has none, the alert bit that each reply carries."""
        if self._blocks.shape[1] == BLOCK_BYTES:
            return rows["hardware_error"].copy()
        return self._require().errors & np.uint8(ALERT_BIT)

    def _restarted(self) -> MotorError:
        motor = self.spec.motors[int(np.argmax(as_rows(self._blocks)["voltage"] < self._least))]
        return MotorError(
            f"{motor} on {self._port.path} has restarted and forgotten its set-up",
            "check its supply and the cable that leads to it, then enable the arm again",
        )

    def _gone(self) -> MotorError:
        """Name the first silent motor in the chain: those behind it may only be cut off by it."""
        silent = [
            m for m, c in zip(self.spec.motors, self._coasting, strict=True) if c > self.config.max_coast
        ]
        what = f"{silent[0]} has not answered on {self._port.path} for {int(self._coasting.max())} cycles"
        if len(silent) == len(self.spec.motors):
            return MotorError(
                f"no motor of {self.spec.name} answers on {self._port.path}", "check the arm's power"
            )
        others = f" (nor have {', '.join(str(m.id) for m in silent[1:])})" if silent[1:] else ""
        return MotorError(what + others, "check its power and the cable that leads to it")
