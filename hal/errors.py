"""Errors of the hardware layer. Each message says what is wrong, where, and what to do."""

from __future__ import annotations


class HalError(Exception):
    """Base of everything the hardware layer raises on purpose: one line for a person.

    ``what`` says what is wrong and where; ``remedy`` says what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class PortError(HalError):
    """The serial port cannot be opened, vanished, or is in use."""


class MotorError(HalError):
    """A motor is missing, of the wrong model, or reports a hardware error."""


class ProtocolError(HalError):
    """Bytes on the bus that are not a valid packet (CRC, length, instruction)."""


class CalibrationError(HalError):
    """A calibration file is missing, malformed, or belongs to another arm."""


class CameraError(HalError):
    """A camera cannot be opened, stopped delivering, or delivers the wrong format."""


class BenchError(HalError):
    """The simulated bench was asked for something it cannot do."""
