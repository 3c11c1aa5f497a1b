"""Light controls of a RealSense's colour sensor."""

from __future__ import annotations

from typing import Any

from hal.cameras.options import CameraOptions
from hal.errors import CameraError

KNOWN = ("auto_exposure", "exposure", "gain", "white_balance")
_SDK = {"auto_exposure": "enable_auto_exposure"}
_AUTOMATIC = {"exposure": "enable_auto_exposure", "white_balance": "enable_auto_white_balance"}


def require_known(name: str, options: CameraOptions) -> None:
    """Raises CameraError for options that no RealSense has."""
    unknown = [option for option in options.asked() if option not in KNOWN]
    if unknown:
        raise CameraError(
            f"camera {name!r} cannot be given {', '.join(unknown)}: it is a RealSense",
            f"take that out of its configuration; it has {', '.join(KNOWN)}",
        )


def apply_options(rs: Any, device: Any, name: str, options: CameraOptions) -> None:
    """Set what is asked for and read it back. Raises CameraError naming what is refused."""
    asked = options.asked()
    if not asked:
        return
    sensor = _colour_sensor(rs, device)
    for option, value in asked.items():
        if option in _AUTOMATIC:
            _set(rs, sensor, name, option, _AUTOMATIC[option], 0.0)
        _set(rs, sensor, name, option, _SDK.get(option, option), float(value))


def _set(rs: Any, sensor: Any, name: str, option: str, sdk_name: str, value: float) -> None:
    key = getattr(rs.option, sdk_name)
    if sensor is None or not sensor.supports(key) or sensor.is_option_read_only(key):
        raise CameraError(
            f"camera {name!r} has no {option} to set",
            "take it out of its configuration (a recording has none)",
        )
    try:
        sensor.set_option(key, value)
    except RuntimeError as error:
        limits = sensor.get_option_range(key)
        raise CameraError(
            f"camera {name!r} refuses {option} = {value:g} ({error})",
            f"choose from {limits.min:g} to {limits.max:g}",
        ) from error
    has = float(sensor.get_option(key))
    if abs(has - value) > max(0.5, 0.01 * value):
        raise CameraError(f"camera {name!r} refuses {option} = {value:g}: it keeps {has:g}", "choose that")


def _colour_sensor(rs: Any, device: Any) -> Any:
    for sensor in device.query_sensors():
        if any(profile.stream_type() == rs.stream.color for profile in sensor.get_stream_profiles()):
            return sensor
    return None
