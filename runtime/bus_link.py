"""An arm's port with its failures: linked or not, the latched fault, whether it carries torque.

A failing bus raises no exception out of here. It becomes a latched ``Fault`` with one line for a
person; the link is tried again from time to time, and nothing is energised until somebody asks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hal.errors import HalError, PortError
from hal.types import JointState, Vector
from runtime.bus_records import Fault
from runtime.errors import ServoError
from runtime.servo import ServoCore
from runtime.streams import NS

log = logging.getLogger(__name__)


class ArmPort(Protocol):
    """What is needed of an arm; ``hal.dynamixel.bus.ArmBus`` is the real one."""

    @property
    def counters(self) -> npt.NDArray[np.int64]: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    def read(self) -> JointState: ...
    def write_goals(self, position_rad: Vector) -> None: ...
    def set_torque(self, on: bool) -> None: ...
    def torque(self) -> npt.NDArray[np.bool_]: ...
    def arm_watchdog(self, timeout_ms: int) -> None: ...
    def disarm_watchdog(self) -> None: ...
    def clear_watchdog(self) -> None: ...
    def watchdog_tripped(self) -> tuple[str, ...]: ...
    def reconnect(self) -> None: ...


class ArmLink:
    """One arm on its port. ``shutdown_errors`` masks the bits of the servos' error byte that count."""

    def __init__(self, port: ArmPort, watchdog_ms: int, reconnect_s: float, shutdown_errors: int) -> None:
        self.port = port
        self.fault = Fault.NONE
        self.message = ""
        self.torque = False
        self._watchdog_ms = watchdog_ms
        self._reconnect_ns = round(reconnect_s * NS)
        self._shutdown_errors = np.uint8(shutdown_errors)
        self._joints: JointState | None = None
        self._linked = self._opened = self._taken = False
        self._retry_ns = 0

    @property
    def commandable(self) -> bool:
        """The arm may be stepped: linked, and no motor out of reach."""
        return self._linked and self.fault in (Fault.NONE, Fault.HARDWARE)

    @property
    def joints(self) -> JointState:
        """The last sample. Raises ServoError while the arm cannot be reached."""
        if not self._linked or self._joints is None:
            raise ServoError("the arm cannot be reached", "check its power and its cable")
        return self._joints

    def read(self) -> JointState | None:
        """This cycle's sample, or None while the arm is out of reach."""
        if not self._linked and not self._connect():
            return None
        try:
            self._joints = self.port.read()
        except HalError as error:
            self.fail(error)
            return None
        return self._joints

    def settle(self, core: ServoCore | None, last_cycle_ns: int) -> None:
        """Before commanding: take over an arm that a dead process left energised; notice a watchdog's trip.

        ``last_cycle_ns`` is how long ago the last cycle began.
        """
        if core is None:
            # Nothing is commanded: a leader that answers again is well again.
            self.fault, self.message = Fault.NONE, ""
            return
        if self.fault is not Fault.NONE:
            return
        try:
            if not self._taken:
                self.take_over(core)
                self._taken = True
            elif (
                self.torque and last_cycle_ns > self._watchdog_ms * 1_000_000 and self.port.watchdog_tripped()
            ):
                self.latch_stall(last_cycle_ns / 1e6)
        except HalError as error:
            self.fail(error)
        except ServoError as error:
            self.latch_hardware(error.what)

    def reach(self, action: Callable[[], object]) -> None:
        """Do something on the bus; a failure becomes the latched fault."""
        try:
            action()
        except HalError as error:
            self.fail(error)

    def fail(self, error: HalError) -> None:
        """The arm is out of reach: latch why, try again later."""
        fault = Fault.PORT if isinstance(error, PortError) else Fault.MOTOR
        if self.fault not in (Fault.PORT, Fault.MOTOR):
            # An arm that was never reached is reported by whoever starts it.
            log.log(logging.ERROR if self._opened else logging.INFO, "bus fault=%s %s", fault.name, error)
        self._linked = False
        self._retry_ns = time.monotonic_ns() + self._reconnect_ns
        self.fault, self.message = fault, str(error)

    def shut_down_motors(self, joints: JointState) -> str:
        """Motors that report an error that made them give up, in words; empty when none does."""
        errors = joints.hardware_error & self._shutdown_errors
        named = ", ".join(f"motor {i + 1}: {errors[i]:#04x}" for i in np.flatnonzero(errors))
        return f"hardware error ({named})" if named else ""

    def latch_hardware(self, motors: str) -> None:
        """Motors have shut themselves down."""
        self.fault = Fault.HARDWARE
        self.message = f"{motors}; let it cool, power-cycle the arm, then clear the fault"
        log.error("bus fault=HARDWARE %s", self.message)

    def latch_stall(self, stalled_ms: float) -> None:
        """This process did not reach the motors in time and their watchdog stopped them."""
        self.fault = Fault.WATCHDOG
        self.message = (
            f"the bus was quiet for {stalled_ms:.0f} ms and the motors' watchdog stopped them; "
            "find what stalled the bus process, then clear the fault"
        )
        log.error("bus fault=WATCHDOG %s", self.message)

    def take_over(self, core: ServoCore) -> None:
        """Command the arm (again): held where it is if it carries torque, and nothing energised if not.

        Ends a fault. Raises ServoError while the arm cannot be reached or a motor still reports an
        error, HalError.
        """
        joints = self.joints
        motors = self.shut_down_motors(joints)
        if motors:
            raise ServoError(motors, "power-cycle the arm, then clear the fault again")
        if self.port.torque().any():
            core.adopt(joints)
            self._guarded_by_watchdog(core)
        else:
            core.release()
            self.torque = False
        self.fault, self.message = Fault.NONE, ""
        log.info("bus taken over torque=%s", self.torque)

    def energise(self, core: ServoCore) -> None:
        """Torque on at the measured pose, so nothing jumps; an arm that carries torque keeps its goal.

        Raises ServoError while the core refuses, HalError.
        """
        core.start(self.joints)
        if not self.port.torque().all():
            self.port.set_torque(True)
            # A limp arm sinks until its last motor has torque: goals from before would lift it again.
            self._joints = self.port.read()
            core.adopt(self._joints)
            core.start(self._joints)
        self._guarded_by_watchdog(core)
        log.info("arm energised")

    def _guarded_by_watchdog(self, core: ServoCore) -> None:
        self.port.clear_watchdog()
        self.port.write_goals(core.goal)
        self.port.arm_watchdog(self._watchdog_ms)
        self.torque = True

    def release(self) -> None:
        """Take the torque away. Raises HalError."""
        self.port.disarm_watchdog()
        self.port.set_torque(False)
        self.torque = False
        log.info("arm released")

    def _connect(self) -> bool:
        """Try to reach the arm, at most every ``reconnect_s``."""
        if time.monotonic_ns() < self._retry_ns:
            return False
        try:
            if self._opened:
                self.port.reconnect()
            else:
                self.port.open()
        except HalError as error:
            self.fail(error)
            return False
        self._linked = self._opened = True
        self._taken = False
        log.info("bus linked fault=%s", self.fault.name)
        return True
