"""A serial port with deadlines: never blocks past one, never spins, never shared by two programs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import termios
import time

from hal.errors import PortError

SPEEDS: dict[int, int] = {
    9_600: termios.B9600,
    57_600: termios.B57600,
    115_200: termios.B115200,
    1_000_000: termios.B1000000,
    2_000_000: termios.B2000000,
    3_000_000: termios.B3000000,
    4_000_000: termios.B4000000,
}
"""bit/s to the constant of termios, for the rates that motors have."""

_SERIAL_STRUCT_BYTES = 128  # more than the kernel's struct serial_struct on any machine
_FLAGS_OFFSET = 16  # its fifth int
_ASYNC_LOW_LATENCY = 0x2000
_SELECTABLE = 1024  # FD_SETSIZE


class Port:
    """One serial port, owned exclusively while open. One thread at a time."""

    def __init__(self, path: str, baud: int) -> None:
        if baud not in SPEEDS:
            raise PortError(f"no serial port runs at {baud} baud", f"use one of {sorted(SPEEDS)}")
        self.path = path
        self.baud = baud
        self._fd: int | None = None

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def byte_ns(self) -> float:
        """Time of one byte on the wire: start bit, eight data bits, stop bit."""
        return 10e9 / self.baud

    def open(self) -> None:
        """Open, claim and configure the port. Raises PortError with the remedy when it cannot."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._cannot_open(error) from error
        try:
            if fd >= _SELECTABLE:
                raise PortError(
                    f"{self.path} is one open file too many", "close some of this program's files"
                )
            self._claim(fd)
            self._configure(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def close(self) -> None:
        """Close; safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def send(self, data: bytes, *, fresh: bool = True) -> int:
        """Write ``data``; with ``fresh`` drop what came unasked first. Returns the ns before writing.

        Raises PortError when the port has vanished or does not take the bytes.
        """
        fd = self._require()
        try:
            if fresh:
                termios.tcflush(fd, termios.TCIFLUSH)
            sent_ns = time.monotonic_ns()
            written = os.write(fd, data)
        except (OSError, termios.error) as error:
            raise self._vanished() from error
        if written != len(data):
            raise PortError(f"{self.path} takes no more bytes", "unplug the adapter and plug it in again")
        return sent_ns

    def receive_into(self, buffer: memoryview, deadline_ns: int) -> int:
        """Wait for bytes until ``deadline_ns``, read into ``buffer``; 0 when none came in time."""
        fd = self._require()
        # poll and epoll wait in whole milliseconds, a quarter of a cycle; select to the microsecond.
        ready, _, _ = select.select((fd,), (), (), max(0, deadline_ns - time.monotonic_ns()) * 1e-9)
        if not ready:
            return 0
        try:
            count = os.readv(fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._vanished() from error
        if count == 0:
            raise self._vanished()
        return count

    def _require(self) -> int:
        if self._fd is None:
            raise PortError(f"{self.path} is not open", "call open() or reconnect() first")
        return self._fd

    def _claim(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.ioctl(fd, termios.TIOCEXCL)
        except BlockingIOError as error:
            raise self._busy() from error
        except OSError as error:
            raise self._not_serial() from error

    def _configure(self, fd: int) -> None:
        speed = SPEEDS[self.baud]
        raw_mode = termios.CS8 | termios.CREAD | termios.CLOCAL
        try:
            control = termios.tcgetattr(fd)[6]
            control[termios.VMIN], control[termios.VTIME] = 0, 0
            termios.tcsetattr(fd, termios.TCSANOW, [0, 0, raw_mode, 0, speed, speed, control])
            set_to = termios.tcgetattr(fd)[5]
            termios.tcflush(fd, termios.TCIOFLUSH)
        except termios.error as error:
            raise self._not_serial() from error
        if set_to != speed:
            raise PortError(
                f"{self.path} cannot be set to {self.baud} baud",
                "use an adapter that can, such as ROBOTIS' U2D2",
            )
        self._ask_for_low_latency(fd)

    @staticmethod
    def _ask_for_low_latency(fd: int) -> None:
        """FTDI adapters hold bytes back for 16 ms unless asked not to; others have no such flag."""
        state = bytearray(_SERIAL_STRUCT_BYTES)
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCGSERIAL, state)
            (flags,) = struct.unpack_from("=i", state, _FLAGS_OFFSET)
            struct.pack_into("=i", state, _FLAGS_OFFSET, flags | _ASYNC_LOW_LATENCY)
            fcntl.ioctl(fd, termios.TIOCSSERIAL, bytes(state))

    def _cannot_open(self, error: OSError) -> PortError:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
            return PortError(
                f"there is no serial port {self.path}",
                "plug the adapter in or correct the path; `ratchet doctor` lists the ports",
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return PortError(
                f"no permission to open {self.path}",
                "add yourself to its group (`sudo usermod -aG dialout $USER`) and log in again",
            )
        if error.errno == errno.EBUSY:
            return self._busy()
        if error.errno in (errno.EISDIR, errno.ENOTDIR):
            return self._not_serial()
        return PortError(f"cannot open {self.path}: {error.strerror}", "check the adapter and its path")

    def _busy(self) -> PortError:
        return PortError(
            f"{self.path} is in use by another program", f"end it first (`fuser {self.path}` names it)"
        )

    def _not_serial(self) -> PortError:
        return PortError(
            f"{self.path} is not a serial port", "give the adapter's path; `ratchet doctor` lists the ports"
        )

    def _vanished(self) -> PortError:
        self.close()
        return PortError(f"the serial port {self.path} has vanished", "check the USB cable, then reconnect")
