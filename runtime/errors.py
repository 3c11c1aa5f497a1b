"""Errors of the runtime. Each message is one line: what is wrong, where; what to do."""

from __future__ import annotations


class RuntimeFault(Exception):  # noqa: N818 - a fault of the runtime, not Python's RuntimeError
    """Base of everything the runtime raises on purpose: one line for a person.

    ``what`` says what is wrong and where; ``remedy`` says what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class ServoError(RuntimeFault):
    """The servo core was asked for something its phase forbids, or for motion from a bad pose."""


class RingError(RuntimeFault):
    """A shared-memory file is missing, of another layout, or too small for the record."""


class BusProcessError(RuntimeFault):
    """The bus process did not start, died, or did not acknowledge a control word in time."""


class CameraProcessError(RuntimeFault):
    """The camera process did not start or died."""
