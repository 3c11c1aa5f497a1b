"""Which role each method of RobotControl needs."""

from __future__ import annotations

from collections.abc import Mapping

from protos.access.roles import COMMON_ROLES, Role

_CONTROL = "/ratchet.v1.RobotControl/"

METHOD_ROLES: Mapping[str, Role] = {
    _CONTROL + "GetState": Role.LOOK,
    _CONTROL + "StreamTelemetry": Role.LOOK,
    _CONTROL + "Stop": Role.LOOK,  # whoever may watch may stop
    _CONTROL + "EStop": Role.LOOK,
    _CONTROL + "AcquireControl": Role.DRIVE,
    _CONTROL + "Heartbeat": Role.DRIVE,
    _CONTROL + "ReleaseControl": Role.DRIVE,
    _CONTROL + "Enable": Role.DRIVE,
    _CONTROL + "ClearEStop": Role.DRIVE,
    _CONTROL + "SetMode": Role.DRIVE,
    _CONTROL + "StartEpisode": Role.DRIVE,
    _CONTROL + "EndEpisode": Role.DRIVE,
    _CONTROL + "KeepLast": Role.DRIVE,
    _CONTROL + "Teleop": Role.DRIVE,
    _CONTROL + "SetPolicy": Role.DEPLOY,
    **COMMON_ROLES,
}
