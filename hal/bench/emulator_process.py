"""Emulated buses in a process of their own, so that physics, rendering and their interpreter
lock never make a motor's reply late."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, Self

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.judge import GoalLog, JudgeReport
from hal.bench.motors import MotorBackend
from hal.bench.shared_motors import SharedMotors, allocate
from hal.bench.wire import EmulatorFaults
from hal.dynamixel.arm import ArmSpec
from hal.errors import BenchError

_START_S = 60.0
_ANSWER_S = 10.0


class EmulatorProcess:
    """Serves the buses of ``arms`` (name → arm and configuration) from one child process.

    The physics stay with the caller, who calls ``receive`` before each step and ``exchange`` after it.
    The child ends with ``stop``, or when the caller's process does, however it does.
    """

    def __init__(self, arms: Mapping[str, tuple[ArmSpec, EmulatorConfig]]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arms = dict(arms)
        self._memory = {name: allocate(self._context, len(spec.motors)) for name, (spec, _) in arms.items()}
        self._motors = {
            name: SharedMotors(self._memory[name], len(spec.motors)) for name, (spec, _) in arms.items()
        }
        self._ports: dict[str, str] = {}
        self._faults = {name: EmulatorFaults() for name in arms}
        self._connection: Connection | None = None
        self._process: Any = None

    def start(self, backends: Mapping[str, MotorBackend]) -> Self:
        """Start serving the present state of ``backends``. Raises BenchError when the child fails."""
        for name, motors in self._motors.items():
            motors.publish(backends[name].read())
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._arms, self._memory), name="emulated buses", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self._ports = self._answer(_START_S)
        except BenchError:
            self.stop()
            raise
        return self

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.is_alive()

    def receive(self, name: str, backend: MotorBackend) -> None:
        """Give ``backend`` what the bus was told since the last time."""
        self._motors[name].apply(backend)

    def exchange(self, name: str, backend: MotorBackend) -> None:
        """Give the bus the state of ``backend``, and ``backend`` what the bus was told."""
        self.receive(name, backend)
        self._motors[name].publish(backend.read())

    def port(self, name: str) -> str:
        """Path of the bus's serial port."""
        return self._ports[name]

    def faults(self, name: str) -> EmulatorFaults:
        """The faults set last."""
        return self._faults[name]

    def set_faults(self, name: str, faults: EmulatorFaults) -> None:
        """As ``ServoEmulator.set_faults``. Raises BenchError when the child does not answer."""
        self._tell("set_faults", name, faults)
        self._faults[name] = faults

    def reboot(self, name: str, motor_id: int) -> None:
        """As ``ServoEmulator.reboot``."""
        self._tell("reboot", name, motor_id)

    def disconnect(self, name: str) -> None:
        """As ``ServoEmulator.disconnect``."""
        self._tell("disconnect", name)

    def connect(self, name: str) -> None:
        """As ``ServoEmulator.connect``."""
        self._tell("connect", name)

    def judge_reset(self, name: str) -> None:
        """As ``ServoEmulator.judge_reset``."""
        self._tell("judge_reset", name)

    def judge(self, name: str) -> JudgeReport:
        """As ``ServoEmulator.judge``."""
        report: JudgeReport = self._tell("judge", name)
        return report

    def goal_log(self, name: str) -> GoalLog:
        """As ``ServoEmulator.goal_log``."""
        log: GoalLog = self._tell("goal_log", name)
        return log

    def stop(self) -> None:
        """End the child and remove the ports; safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.join(_ANSWER_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None

    def _tell(self, *command: Any) -> Any:
        if self._connection is None:
            raise BenchError("the emulated buses are not running", "call start() first")
        try:
            self._connection.send(command)
        except OSError as error:
            raise BenchError("the emulated buses have ended", "restart the bench") from error
        return self._answer(_ANSWER_S)

    def _answer(self, timeout_s: float) -> Any:
        connection = self._connection
        try:
            if connection is not None and connection.poll(timeout_s):
                return connection.recv()
        except (EOFError, OSError) as error:
            raise BenchError("the process of the emulated buses died", "read its output above") from error
        self.stop()  # an answer that came later would be taken for the next one
        raise BenchError(f"the emulated buses do not answer within {timeout_s:.0f} s", "restart the bench")


def _serve(
    connection: Connection, arms: dict[str, tuple[ArmSpec, EmulatorConfig]], memory: dict[str, Any]
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # the parent decides when to end; its death closes the connection
    buses = {
        name: ServoEmulator(spec, SharedMotors(memory[name], len(spec.motors)), config)
        for name, (spec, config) in arms.items()
    }
    try:
        for bus in buses.values():
            bus.start()
        connection.send({name: bus.port for name, bus in buses.items()})
        while True:
            operation, name, *arguments = connection.recv()
            connection.send(getattr(buses[name], operation)(*arguments))
    except (EOFError, ConnectionError):
        pass  # the parent has stopped us, or died
    finally:
        for bus in buses.values():
            bus.stop()
