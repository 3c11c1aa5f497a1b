"""What a motor's error bytes mean, in words and remedies."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class StatusError(IntEnum):
    """Error number in bits 0–6 of a status packet's error byte."""

    OK = 0
    RESULT_FAIL = 1
    INSTRUCTION = 2
    CRC = 3
    DATA_RANGE = 4
    DATA_LENGTH = 5
    DATA_LIMIT = 6
    ACCESS = 7


class HardwareError(IntFlag):
    """Bits of register Hardware_Error_Status (70)."""

    INPUT_VOLTAGE = 0x01
    OVERHEATING = 0x04
    ENCODER = 0x08
    ELECTRICAL_SHOCK = 0x10
    OVERLOAD = 0x20


_STATUS_WORDS = {
    StatusError.RESULT_FAIL: "it could not carry out the instruction",
    StatusError.INSTRUCTION: "it does not know the instruction",
    StatusError.CRC: "the instruction arrived damaged",
    StatusError.DATA_RANGE: "the value is out of range (or its bus watchdog has tripped)",
    StatusError.DATA_LENGTH: "the data is shorter than the register",
    StatusError.DATA_LIMIT: "the value is beyond a limit set in the motor",
    StatusError.ACCESS: "the register is read-only, unknown, or locked while torque is on",
}

_HARDWARE_WORDS = {
    HardwareError.INPUT_VOLTAGE: ("input voltage out of range", "check the power supply"),
    HardwareError.OVERHEATING: ("overheating", "let it cool and reduce its load"),
    HardwareError.ENCODER: ("encoder fault", "power-cycle it; replace it if this returns"),
    HardwareError.ELECTRICAL_SHOCK: ("electrical shock or too little power", "check supply and cables"),
    HardwareError.OVERLOAD: ("overload", "free the joint from what it pushes against"),
}


def describe_status(error: int) -> str:
    """The error number of a status packet in words, e.g. for ``0x07``: "the register is …"."""
    number = error & 0x7F
    try:
        return _STATUS_WORDS.get(StatusError(number), "no error")
    except ValueError:
        return f"it answers with the unknown error number {number}"


def decode_hardware_error(bits: int) -> tuple[str, ...]:
    """Names of the faults in a Hardware_Error_Status byte; empty for 0."""
    names = [words for flag, (words, _) in _HARDWARE_WORDS.items() if bits & flag]
    unknown = bits & ~int(sum(_HARDWARE_WORDS))
    if unknown:
        names.append(f"unknown bits 0x{unknown:02x}")
    return tuple(names)


def hardware_remedy(bits: int) -> str:
    """What to do about the faults in ``bits``; a shutdown needs a reboot of the motor afterwards."""
    steps = [remedy for flag, (_, remedy) in _HARDWARE_WORDS.items() if bits & flag]
    return ", ".join([*steps, "then switch the arm's power off and on"])
