"""A bus of servos behind a pseudo-terminal: what the real drivers talk to on the bench."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import shutil
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from hal.bench.emulated_bus import EmulatedBus
from hal.bench.emulated_motor import EmulatedMotor
from hal.bench.first_order import FirstOrderBackend
from hal.bench.judge import GoalLog, Judge, JudgeReport
from hal.bench.motors import MotorBackend
from hal.bench.wire import EmulatorFaults, Wire
from hal.dynamixel.arm import ArmSpec
from hal.dynamixel.packet import MAX_PACKET, OVERHEAD, Instruction, PacketParser, build
from hal.dynamixel.port import SPEEDS
from hal.dynamixel.tables import BAUD_CODES
from hal.errors import BenchError

_log = logging.getLogger(__name__)

_IDLE_MS = 5  # how often the watchdogs are looked at while the bus is quiet
_STALLED_NS = 20_000_000  # more than any reply takes: the machine gave this process no time
_SLEEP_SLACK_NS = 50_000  # what a sleep oversleeps: that much is spun, so that wire time is exact
_REALTIME_PRIORITY = 50  # above any process of ours
_BAUD_CODE = {baud: code for code, baud in BAUD_CODES.items()}
_BAUD_OF_SPEED = {speed: baud for baud, speed in SPEEDS.items()}


class EmulatorConfig(BaseModel):
    """How the emulated bus behaves.

    ``wire_time`` makes bytes take as long as they do at ``baud``. ``check_baud`` makes motors
    deaf to a port set to another rate. ``firmware`` is what the motors report. ``indirect_data``
    moves the indirect area, as older firmware has it. ``link`` is where the stable path of the
    port is made; a temporary directory by default. ``seed`` draws the faults. ``realtime`` asks
    for SCHED_FIFO: motors are hardware and do not wait for the software that is tested on them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    baud: int = 1_000_000
    wire_time: bool = True
    check_baud: bool = True
    firmware: int = Field(default=52, ge=1, le=255)
    indirect_data: int | None = Field(default=None, ge=208, le=256)
    link: Path | None = None
    seed: int = 0
    realtime: bool = True


class ServoEmulator:
    """Serves one arm's motors on ``port`` from a thread of its own, between start and stop.

    ``port`` is a symbolic link that stays the same over ``disconnect`` and ``connect``, while
    the pseudo-terminal behind it goes and comes, as a USB adapter does.
    """

    def __init__(self, spec: ArmSpec, backend: MotorBackend, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        if self.config.baud not in _BAUD_CODE:
            raise BenchError(
                f"motors cannot run at {self.config.baud} baud", f"use one of {sorted(_BAUD_CODE)}"
            )
        self._judge = Judge(len(spec.motors))
        self.motors = [
            EmulatedMotor(
                i,
                motor.model,
                motor.id,
                _BAUD_CODE[self.config.baud],
                backend,
                self.config.firmware,
                self.config.indirect_data,
                self._judge,
            )
            for i, motor in enumerate(spec.motors)
        ]
        self._backend = backend
        self._bus = EmulatedBus(self.motors)
        self._wire = Wire(self.config.baud, self.config.wire_time, self.config.seed)
        self._parser = PacketParser()
        self._faults = EmulatorFaults()
        self._directory: str | None = None
        if self.config.link is None:
            self._directory = tempfile.mkdtemp(prefix="ratchet-bus-")
        self._link = self.config.link or Path(self._directory or "", f"tty-{spec.name}")
        self._master: int | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._poller = select.poll()
        self._poller.register(self._wake, select.POLLIN)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> str:
        """Path to open, the same for the emulator's whole life."""
        return str(self._link)

    @property
    def faults(self) -> EmulatorFaults:
        return self._faults

    def start(self) -> Self:
        """Create the pseudo-terminal and serve it. Raises BenchError when there is none to be had."""
        # Compiled now, not under the first reply's deadline.
        PacketParser().feed(build(0, Instruction.PING))
        self._warm_judge()
        self._connect()
        self._thread = threading.Thread(target=self._serve, name=f"emulator {self._link.name}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and remove the port; safe to call twice."""
        if self._thread is not None:
            self._stopping = True
            os.eventfd_write(self._wake, 1)
            self._thread.join(timeout=5.0)
            self._thread = None
            os.close(self._wake)
        self._disconnect()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def set_faults(self, faults: EmulatorFaults) -> None:
        """Replace the faults, from the next instruction on."""

        def apply() -> None:
            self._faults = faults
            self._bus.silent = faults.silent_ids
            self._bus.twin = None if faults.twin_id is None else self._stranger(faults.twin_id)
            self._apply_hardware_errors()

        self._run_in_thread(apply)

    def reboot(self, motor_id: int) -> None:
        """One motor loses its power for a moment: what is not in its EEPROM is gone."""
        motor = self.motor(motor_id)
        self._run_in_thread(lambda: motor.reboot(time.monotonic_ns()))

    def disconnect(self) -> None:
        """The adapter is pulled out: the port disappears and open handles fail."""
        self._run_in_thread(self._disconnect)

    def connect(self) -> None:
        """The adapter is plugged in again, under the same path. The motors kept their power."""
        self._run_in_thread(self._connect)

    def judge_reset(self) -> None:
        """Let the judge forget what it has seen."""
        self._run_in_thread(lambda: self._judge.reset(time.monotonic_ns()))

    def judge(self) -> JudgeReport:
        """What the motors were told since the last reset."""
        found: list[JudgeReport] = []
        self._run_in_thread(lambda: found.append(self._judge.report()))
        return found[0]

    def goal_log(self) -> GoalLog:
        """The last goals that reached the motors since the last reset, one by one."""
        found: list[GoalLog] = []
        self._run_in_thread(lambda: found.append(self._judge.log()))
        return found[0]

    def motor(self, motor_id: int) -> EmulatedMotor:
        """The motor with this id, for looking at its registers. Raises BenchError if there is none."""
        for motor in self.motors:
            if motor.id == motor_id:
                return motor
        raise BenchError(f"the bus has no motor {motor_id}", f"use one of {[m.id for m in self.motors]}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run_in_thread(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            job()
            return
        done = threading.Event()
        self._jobs.put((job, done))
        os.eventfd_write(self._wake, 1)
        if not done.wait(timeout=5.0):
            raise BenchError(f"the emulator of {self.port} does not respond", "restart the bench")

    def _connect(self) -> None:
        if self._master is not None:
            return
        try:
            master, slave = os.openpty()
        except OSError as error:
            raise BenchError(
                f"no pseudo-terminal to be had ({error.strerror})", "close other terminals"
            ) from error
        tty.setraw(slave)
        path = os.ttyname(slave)
        # Held by the client alone, so that the last close releases an exclusive claim on it.
        os.close(slave)
        os.set_blocking(master, False)
        self._link.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._link.with_name(f".{self._link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(path)
        fresh.replace(self._link)
        self._parser.clear()
        self._poller.register(master, select.POLLIN)
        self._master = master

    def _disconnect(self) -> None:
        if self._master is None:
            return
        self._link.unlink(missing_ok=True)
        self._poller.unregister(self._master)
        os.close(self._master)
        self._master = None

    def _stranger(self, motor_id: int) -> EmulatedMotor:
        """A motor on the bus that moves no arm, with an id that is not its own."""
        like = self.motor(motor_id)
        return EmulatedMotor(
            0, like.model, motor_id, _BAUD_CODE[self.config.baud], FirstOrderBackend(), self.config.firmware
        )

    def _apply_hardware_errors(self) -> None:
        for motor in self.motors:
            bits = self._faults.hardware_error.get(motor.id, 0)
            if bits:
                motor.set_hardware_error(motor.peek("Hardware_Error_Status") | bits)

    def _serve(self) -> None:
        if self.config.realtime:
            self._ask_for_realtime()
        seen_ns = time.monotonic_ns()
        while not self._stopping:
            readable, hung_up = self._wait()
            while not self._jobs.empty():
                job, done = self._jobs.get()
                job()
                done.set()
                readable = False
            now_ns = time.monotonic_ns()
            stalled, seen_ns = now_ns - seen_ns > _STALLED_NS, now_ns
            for motor in self.motors:
                motor.watch(now_ns)
            if readable and self._master is not None:
                self._receive(self._master)
            if stalled:
                self._judge.stalled()  # after what had piled up
            if hung_up:
                time.sleep(_IDLE_MS / 1000)  # nobody has the port open, and poll would not wait

    def _warm_judge(self) -> None:
        judge = Judge(len(self.motors))
        for motor in self.motors:
            judge.energise(motor.index, 0.0)
        judge.commit(0, self._backend.read().position)

    def _ask_for_realtime(self) -> None:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        try:
            os.sched_setscheduler(0, policy, os.sched_param(_REALTIME_PRIORITY))
        except PermissionError:
            _log.info("no real-time priority: port=%s effect=late replies under load", self.port)

    def _wait(self) -> tuple[bool, bool]:
        """(the port has bytes, nobody has it open)."""
        readable = hung_up = False
        for fd, event in self._poller.poll(_IDLE_MS):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            else:
                readable = bool(event & select.POLLIN)
                hung_up = not readable
        return readable, hung_up

    def _receive(self, master: int) -> None:
        arrived_ns = time.monotonic_ns()
        try:
            data = os.read(master, 4 * MAX_PACKET)
        except OSError:
            return  # the client closed between poll and read
        packets = self._parser.feed(self._wire.arriving(data, self._faults))
        baud = self._line_baud(master) if self.config.check_baud else None
        for motor_id in self._parser.rejected:
            self._wire.instruction_ends(OVERHEAD, arrived_ns)
            self._send(master, *self._wire.reply(self._bus.damaged(motor_id), self._faults))
        for packet in packets:
            ends_ns = self._wire.instruction_ends(OVERHEAD + len(packet.params), arrived_ns)
            sample = self._backend.read()
            for motor in self.motors:
                motor.refresh(sample, ends_ns)
            pieces = self._bus.handle(packet, baud, time.monotonic_ns())
            self._apply_hardware_errors()
            self._judge.commit(ends_ns, sample.position)
            if pieces:
                self._send(master, *self._wire.reply(pieces, self._faults))

    def _send(self, master: int, data: bytes, due_ns: int) -> None:
        wait_ns = due_ns - time.monotonic_ns() - _SLEEP_SLACK_NS
        if wait_ns > 0:
            time.sleep(wait_ns * 1e-9)
        while time.monotonic_ns() < due_ns:
            pass
        try:
            os.write(master, data)
        except OSError as error:
            _log.debug("reply lost: port=%s reason=%s", self.port, error.strerror)

    def _line_baud(self, master: int) -> int:
        """The rate the client has set its end to; 0 when it is none that motors know."""
        return _BAUD_OF_SPEED.get(termios.tcgetattr(master)[5], 0)
