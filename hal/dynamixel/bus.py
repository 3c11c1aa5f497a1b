"""One arm on its serial bus: read the whole state, write goals, at servo rate.

A cycle is ``read`` then ``write_goals``. Motors that stay silent coast on their last good values,
with their true age, for at most ``max_coast`` cycles; then ``read`` raises MotorError.
Not thread-safe: the process that owns the port owns this object.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from hal.calibration import Calibration
from hal.dynamixel.arm import ArmSpec, MotorSpec
from hal.dynamixel.block import BLOCK_BYTES, EFFORT_UNIT, VELOCITY_UNIT, VOLTAGE_UNIT, as_rows
from hal.dynamixel.bringup import MotorInfo, bring_up
from hal.dynamixel.errors import decode_hardware_error, hardware_remedy
from hal.dynamixel.link import Link
from hal.dynamixel.packet import BROADCAST_ID, Instruction, build
from hal.dynamixel.port import Port
from hal.dynamixel.reading import METHODS, Method, Reader, choose
from hal.dynamixel.tables import POSITION_MODE, TICKS_PER_TURN, WATCHDOG_TRIPPED, WATCHDOG_UNIT_MS
from hal.errors import MotorError, PortError
from hal.types import JointState, Vector

_log = logging.getLogger(__name__)

_GOAL = np.dtype([("id", "u1"), ("ticks", "<i4")])
_GOAL_HEAD = b"\x74\x00\x04\x00"  # Goal_Position (116), four bytes: the same in all models


class BusConfig(BaseModel):
    """``margin_ms``: how long past its wire time a reply is waited for. ``max_coast``: cycles a
    motor may stay silent. ``attempts``: tries of a set-up transaction. ``read_method``: how the
    state is read; None times every one at open and keeps the fastest that works.

    The defaults are for 240 cycles a second at 1 Mbaud on a busy two-core computer. A transaction whose
    reply is lost takes its wire time and the margin, 5 ms for a bulk read: more than a cycle, and often the
    next one is skipped. Received bytes pass through a kernel worker without priority, even to a process
    that has it: where others took both cores from it, eight cycles in a row were lost. Ten cycles are
    42 ms, or 85 ms where each costs two, inside the servos' watchdog of 100 ms. Neither figure
    holds where this process itself is kept from running; that wants real-time priority.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin_ms: float = Field(default=3.0, ge=0.5, le=50.0)
    max_coast: int = Field(default=10, ge=0, le=30)
    attempts: int = Field(default=3, ge=1, le=10)
    read_method: Method | None = None


@dataclass(frozen=True, slots=True)
class MotorStats:
    """Counters of one motor since the bus was made: cycles without a good reply, replies with a
    wrong CRC, and how many cycles it is coasting now."""

    joint: str
    lost: int
    crc_errors: int
    coasting: int


@dataclass(frozen=True, slots=True)
class BusStats:
    """Counters since the bus was made. ``lost`` and ``crc_errors`` sum over the motors,
    ``retries`` counts repeated set-up transactions, ``stale`` replies to them that came too late,
    ``reconnects`` reopened ports, ``clipped`` goals beyond the calibrated range."""

    cycles: int
    lost: int
    crc_errors: int
    retries: int
    stale: int
    reconnects: int
    clipped: int
    method: str
    motors: tuple[MotorStats, ...]


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
        self._lost = np.zeros(n, dtype=np.int64)
        self._bad = np.zeros(n, dtype=np.int64)
        self._turn_ticks = np.zeros(n, dtype=np.int64)
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
        rows = zip(self.spec.joints, self._lost, self._bad, self._coasting, strict=True)
        return BusStats(
            cycles=self._cycles,
            lost=int(self._lost.sum()),
            crc_errors=int(self._bad.sum()) + self._link.crc_errors,
            retries=self._link.retries,
            stale=self._link.stale,
            reconnects=self._reconnects,
            clipped=self._clipped,
            method=self._reader.method if self._reader else "",
            motors=tuple(MotorStats(joint, int(a), int(b), int(c)) for joint, a, b, c in rows),
        )

    def open(self) -> None:
        """Open the port, check and set up every motor, take a first sample. Torque stays as it is.

        Raises PortError or MotorError with the remedy; the port is closed again then.
        """
        self._port.open()
        try:
            self._infos = bring_up(self._link, self.spec, self.calibration, self._port.path, self._port.baud)
            wanted = METHODS if self.config.read_method is None else (self.config.read_method,)
            self._reader = choose(self._port, self._infos, self._margin_ns, wanted)
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
        than ``max_coast`` cycles.
        """
        reader = self._require()
        self._cycles += 1
        sampled_ns = reader.read(self._blocks)
        fresh = reader.fresh
        self._seen_ns[fresh] = sampled_ns
        self._coasting += 1
        self._coasting[fresh] = 0
        if not fresh.all():
            self._lost += ~fresh
            self._bad += reader.bad
            if self._coasting.max() > self.config.max_coast:
                raise self._gone()
        return self._decode(sampled_ns)

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
            sampled_ns = reader.read(self._blocks)
            self._seen_ns[reader.fresh] = sampled_ns
            missing &= ~reader.fresh
            if not missing.any():
                break
        else:
            raise self._link.no_answer(self.spec.motors[int(np.argmax(missing))])
        self._coasting[:] = 0
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
            hardware_error=rows["hardware_error"].copy(),
            moving=rows["moving"] != 0,
            age_ns=sampled_ns - self._seen_ns,
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
