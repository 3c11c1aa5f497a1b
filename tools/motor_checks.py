"""Are an arm's motors the right ones, and well: who answers, settings, supply, temperature, errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hal.dynamixel.arm import ArmSpec
from hal.dynamixel.errors import decode_hardware_error, hardware_remedy
from hal.dynamixel.inspection import MotorReport
from hal.dynamixel.setup import FoundMotor
from tools.checking import Finding, ok, problem, warning

# V. Koch v1.1: 12 V for the XL430, which a converter brings down to 5 V for the XL330.
_SUPPLY = {"xl330": (4.5, 5.5, "5 V"), "xl430": (11.0, 12.6, "12 V")}
_NEAR_LIMIT_C = 15.0


def judge_motors(name: str, port: str, baud: int, spec: ArmSpec, found: Sequence[FoundMotor]) -> Finding:
    """Are those that answered a scan the motors of ``spec``, at the rate that is configured?"""
    what = f"{name} motors"
    if not found:
        return problem(what, f"none answers on {port} at any baud rate", "check the arm's power and cable")
    bauds = {motor.baud for motor in found}
    if bauds != {baud}:
        return problem(
            what,
            f"they answer at {', '.join(str(rate) for rate in sorted(bauds))} baud, not at {baud}",
            f"set [{name}] baud, or give the motors {baud} baud with Dynamixel Wizard 2.0",
        )
    by_id = {motor.id: motor for motor in found}
    missing = [str(motor) for motor in spec.motors if motor.id not in by_id]
    if missing:
        return problem(
            what,
            f"{', '.join(missing)} {'does' if len(missing) == 1 else 'do'} not answer",
            "check the cable from the motor before it; its id or rate may be another "
            "(without --config, the doctor lists who answers)",
        )
    for wanted in spec.motors:
        motor = by_id.pop(wanted.id)
        if motor.model_number != wanted.model.number:
            return problem(
                what,
                f"{wanted} is {motor.model or motor.model_number}, not {wanted.model_name}",
                "are follower and leader swapped in the configuration?",
            )
        if motor.firmware < wanted.model.min_firmware:
            return problem(
                what,
                f"{wanted} has firmware {motor.firmware}, {wanted.model.min_firmware} is needed",
                "update it with Dynamixel Wizard 2.0",
            )
    if by_id:
        return warning(what, f"unknown motors {sorted(by_id)} answer too", "take them off the bus")
    versions = "/".join(str(v) for v in sorted({motor.firmware for motor in found}))
    return ok(what, f"all {len(found)} answer at {baud} baud, firmware {versions}")


def report_findings(name: str, reports: Sequence[MotorReport]) -> Iterator[Finding]:
    """What the motors' own registers say, one finding a subject."""
    yield _errors(name, reports)
    yield _supply(name, reports)
    yield _temperature(name, reports)
    yield _return_delay(name, reports)
    yield _settings(name, reports)
    yield _torque(name, reports)


def _errors(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} hardware errors"
    bad = [report for report in reports if report.hardware_error]
    if not bad:
        return ok(what, "none")
    bits = 0
    for report in bad:
        bits |= report.hardware_error
    words = (f"{r.motor}: {' and '.join(decode_hardware_error(r.hardware_error))}" for r in bad)
    return problem(what, ", ".join(words), hardware_remedy(bits))


def _supply(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} voltage"
    bad, nominal = [], []
    for report in reports:
        low, high, rated = _SUPPLY[report.motor.model_name.split("-")[0]]
        if not low <= round(report.voltage, 1) <= high:
            bad.append(f"{report.motor}: {report.voltage:.1f} V")
            nominal.append(f"{rated} ({low:g} to {high:g})")
    if bad:
        return warning(
            what,
            f"{', '.join(bad)}; wanted {' and '.join(dict.fromkeys(nominal))}",
            "check the supply, the voltage converter and the length of the cables; measure it under load",
        )
    volts = [report.voltage for report in reports]
    return ok(what, f"{min(volts):.1f} to {max(volts):.1f} V")


def _temperature(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} temperature"
    hot = [r for r in reports if r.temperature > r.temperature_limit - _NEAR_LIMIT_C]
    if hot:
        words = (f"{r.motor}: {r.temperature:.0f} °C of {r.temperature_limit:.0f}" for r in hot)
        return warning(what, ", ".join(words), "let it cool; see what the joint pushes against")
    return ok(what, f"at most {max(report.temperature for report in reports):.0f} °C")


def _return_delay(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} return delay"
    slow = [f"{r.motor}: {r.return_delay_us} µs" for r in reports if r.return_delay_us]
    if slow:
        return warning(what, f"{', '.join(slow)} before each reply", _set_by_itself(reports))
    return ok(what, "none")


def _settings(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} settings"
    wrong = [
        f"{report.motor}: {register} is {found}, not {wanted}"
        for report in reports
        for register, (found, wanted) in report.wrong.items()
        if register != "Return_Delay_Time"
    ]
    if not wrong:
        return ok(what, "drive mode, operating mode, homing offset and limits are as they should be")
    first = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return warning(what, first, _set_by_itself(reports))


def _set_by_itself(reports: Sequence[MotorReport]) -> str:
    """Bring-up writes what differs, which motors accept only without torque."""
    if any(report.torque for report in reports):
        return "support the arm and switch its power off and on; `ratchet up` then sets it"
    return "nothing to do: `ratchet up` sets it when it opens the arm, torque off"


def _torque(name: str, reports: Sequence[MotorReport]) -> Finding:
    what = f"{name} torque"
    held = [report.motor.joint for report in reports if report.torque]
    if held:
        return warning(
            what,
            f"{', '.join(held)} carry torque though no service drives them",
            "support the arm: switching its power off drops it; `ratchet up` takes it over and lets it down",
        )
    return ok(what, "off")
