"""The interceptor in front of every method of a service: who calls is looked at before what is sent.

A message is parsed only after its caller has been admitted, and one that is none ends the call with one
line instead of a traceback in the server's log.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from protos.access.call import REQUEST_BYTES
from protos.access.errors import MalformedError

ServicerContext = grpc.aio.ServicerContext[Any, Any]

#: Raises unless the call may go on: (method, context, whether it is unary both ways).
Admit = Callable[[str, ServicerContext, bool], None]

#: The status and the one line a caller sees for an error.
Explain = Callable[[BaseException], tuple[grpc.StatusCode, str]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Runs ``admit`` before each method; ``errors``, raised by it or by the method, end the call as
    ``explain`` says. `MalformedError` is to be among them."""

    def __init__(self, admit: Admit, errors: tuple[type[BaseException], ...], explain: Explain) -> None:
        self._admit = admit
        self._errors = errors
        self._explain = explain

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
        parse = _parse_all if handler.request_streaming else _parse_one
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            wrap(
                method, inner, functools.partial(parse, handler.request_deserializer), kind == "unary_unary"
            ),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _wrap_coroutine(
        self, method: str, inner: Callable[..., Awaitable[Any]], parse: Callable[[Any], Any], unary: bool
    ) -> Any:
        async def checked(raw: Any, context: ServicerContext) -> Any:
            try:
                self._admit(method, context, unary)
                return await inner(parse(raw), context)
            except self._errors as error:
                await self._end(context, error)

        return checked

    def _wrap_generator(
        self, method: str, inner: Callable[..., AsyncIterator[Any]], parse: Callable[[Any], Any], unary: bool
    ) -> Any:
        async def checked(raw: Any, context: ServicerContext) -> AsyncIterator[Any]:
            try:
                self._admit(method, context, unary)
                async for response in inner(parse(raw), context):
                    yield response
            except self._errors as error:
                await self._end(context, error)

        return checked

    async def _end(self, context: ServicerContext, error: BaseException) -> NoReturn:
        code, line = self._explain(error)
        await context.abort(code, line)
        raise AssertionError("abort returned")


def _parse_one(deserialise: Callable[[bytes], Any], raw: bytes) -> Any:
    REQUEST_BYTES.set(len(raw))
    try:
        return deserialise(raw)
    except DecodeError:
        raise MalformedError(f"{len(raw)} bytes that are no message of this method") from None


async def _parse_all(deserialise: Callable[[bytes], Any], raw: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for one in raw:
        yield _parse_one(deserialise, one)


def _kind(handler: Any) -> str:
    request = "stream" if handler.request_streaming else "unary"
    response = "stream" if handler.response_streaming else "unary"
    return f"{request}_{response}"
