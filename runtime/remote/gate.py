"""The interceptor in front of every method: identity, role, deadline, and errors as status codes."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from hal.errors import HalError
from protos.access.door import Doorkeeper
from protos.access.errors import AccessError
from protos.access.roles import Caller
from runtime.errors import RuntimeFault
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import BadRequestError, RemoteError, one_line
from runtime.remote.roles import METHOD_ROLES

# Stopping is never refused for a formality or for its pace.
_NEVER_LIMITED = frozenset({"/ratchet.v1.RobotControl/EStop", "/ratchet.v1.RobotControl/Stop"})

Context = grpc.aio.ServicerContext[Any, Any]


class Gate(grpc.aio.ServerInterceptor):
    """Admits a call or ends it with one line of explanation.

    A unary call needs a deadline of at most ``max_deadline_s``, so that no request can wait for
    ever inside the robot; streams live as long as their lease or client. Raises CredentialsError
    for files of the configuration that cannot be used.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        self._door = Doorkeeper(config, METHOD_ROLES)

    def caller(self, context: Context) -> Caller:
        """Who is calling. Raises UnidentifiedError when certificate or token names no role."""
        return self._door.caller(context)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Wrap the method's handler in the checks."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # unknown method: grpc answers UNIMPLEMENTED by itself
            return handler  # type: ignore[return-value]
        method = handler_call_details.method
        kind = _kind(handler)
        inner = getattr(handler, kind)
        wrap = self._wrap_generator if inspect.isasyncgenfunction(inner) else self._wrap_coroutine
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            wrap(method, inner, unary=kind == "unary_unary"),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap_coroutine(self, method: str, inner: Callable[..., Awaitable[Any]], *, unary: bool) -> Any:
        async def checked(request: Any, context: Context) -> Any:
            try:
                self._admit(method, context, unary=unary)
                return await inner(request, context)
            except (RuntimeFault, HalError, AccessError) as error:
                await _end(context, error)

        return checked

    def _wrap_generator(self, method: str, inner: Callable[..., AsyncIterator[Any]], *, unary: bool) -> Any:
        async def checked(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                self._admit(method, context, unary=unary)
                async for response in inner(request, context):
                    yield response
            except (RuntimeFault, HalError, AccessError) as error:
                await _end(context, error)

        return checked

    def _admit(self, method: str, context: Context, *, unary: bool) -> None:
        self._door.admit(method, context, counted=method not in _NEVER_LIMITED)
        if not unary or method in _NEVER_LIMITED:
            return
        remaining_s = context.time_remaining()
        limit_s = self._config.max_deadline_s
        if remaining_s is None or remaining_s > limit_s:
            given = "no deadline" if remaining_s is None else f"a deadline of {remaining_s:.0f} s"
            raise BadRequestError(f"the call has {given}", f"set one of at most {limit_s:.0f} s")


def _kind(handler: Any) -> str:
    request = "stream" if handler.request_streaming else "unary"
    response = "stream" if handler.response_streaming else "unary"
    return f"{request}_{response}"


async def _end(context: Context, error: RuntimeFault | HalError | AccessError) -> None:
    code = error.code if isinstance(error, RemoteError | AccessError) else grpc.StatusCode.UNAVAILABLE
    await context.abort(code, one_line(error))
