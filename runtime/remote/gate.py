"""In front of every method of RobotControl: identity, role, pace, deadline."""

from __future__ import annotations

import grpc

from hal.errors import HalError
from protos.access.door import Doorkeeper
from protos.access.errors import AccessError
from protos.access.interceptor import Interceptor, ServicerContext
from protos.access.roles import Caller
from runtime.errors import RuntimeFault
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import BadRequestError, RemoteError, one_line
from runtime.remote.roles import METHOD_ROLES

# Stopping is never refused for a formality or for its pace.
_NEVER_LIMITED = frozenset({"/ratchet.v1.RobotControl/EStop", "/ratchet.v1.RobotControl/Stop"})

Context = ServicerContext


class Gate(Interceptor):
    """Admits a call or ends it with one line of explanation.

    A unary call needs a deadline of at most ``max_deadline_s``, so that no request can wait for
    ever inside the robot; streams live as long as their lease or client. Raises CredentialsError
    for files of the configuration that cannot be used.
    """

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(self._check, (RuntimeFault, HalError, AccessError), _explain)
        self._config = config
        self._door = Doorkeeper(config, METHOD_ROLES)

    def caller(self, context: Context) -> Caller:
        """Who is calling. Raises UnidentifiedError when certificate or token names no role."""
        return self._door.caller(context)

    def _check(self, method: str, context: Context, unary: bool) -> None:
        limited = method not in _NEVER_LIMITED
        self._door.admit(method, context, counted=limited)
        if not unary or not limited:
            return
        remaining_s = context.time_remaining()
        limit_s = self._config.max_deadline_s
        if remaining_s is None or remaining_s > limit_s:
            given = "no deadline" if remaining_s is None else f"a deadline of {remaining_s:.0f} s"
            raise BadRequestError(f"the call has {given}", f"set one of at most {limit_s:.0f} s")


def _explain(error: BaseException) -> tuple[grpc.StatusCode, str]:
    code = error.code if isinstance(error, RemoteError | AccessError) else grpc.StatusCode.UNAVAILABLE
    return code, one_line(error)
