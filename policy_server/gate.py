"""In front of every method of PolicyService: identity, role, pace; errors become status codes."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from policy_server.config import ServerConfig
from policy_server.errors import ServerError
from protos.access.door import Doorkeeper
from protos.access.errors import AccessError
from protos.access.interceptor import Interceptor, ServicerContext
from protos.access.roles import COMMON_ROLES, Role

_POLICY = "/ratchet.v1.PolicyService/"

#: Who asks for actions moves an arm; who changes what is served deploys.
METHOD_ROLES: Mapping[str, Role] = {
    _POLICY + "Status": Role.LOOK,
    _POLICY + "Infer": Role.DRIVE,
    _POLICY + "InferStream": Role.DRIVE,
    _POLICY + "OpenFrames": Role.DRIVE,
    _POLICY + "Report": Role.DRIVE,
    _POLICY + "Shadow": Role.DEPLOY,
    _POLICY + "Load": Role.DEPLOY,
    _POLICY + "Swap": Role.DEPLOY,
    _POLICY + "Rollback": Role.DEPLOY,
    **COMMON_ROLES,
}


class Gate(Interceptor):
    """Admits a call or ends it with one line. Raises CredentialsError for files that cannot be used."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(self._check, (AccessError, ServerError), _explain)
        self.door = Doorkeeper(config, METHOD_ROLES)

    def _check(self, method: str, context: ServicerContext, unary: bool) -> None:
        self.door.admit(method, context)


def _explain(error: BaseException) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, AccessError):
        return error.code, str(error)
    assert isinstance(error, ServerError)
    return error.status, str(error)
