"""A small HTTP/1.1 server on loopback: GET and HEAD, connections kept alive, everything bounded.

What a browser on this machine needs to fetch a few hundred pictures a second, and no more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from tools.errors import UsageError

_log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10  # a request with its headers; room for a long SQL condition
MAX_CONNECTIONS = 64
IDLE_S = 60.0
ANSWER_S = 30.0
HOST = "127.0.0.1"
# What the page may do, whatever gets into it: only talk to this server and show its pictures.
_SECURITY = (
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nCross-Origin-Opener-Policy: same-origin\r\n"
)
_REASONS = {
    200: "OK", 303: "See Other", 400: "Bad Request", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip


class BadRequestError(Exception):
    """The request makes no sense; the message is the answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` decoded and without the query; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    def cookie(self, name: str) -> str:
        """The cookie's value, or ""."""
        for part in self.headers.get("cookie", "").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                return value
        return ""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; ``headers`` come on top of those every answer has."""

    body: bytes
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cache: bool = False

    def head(self, keep: bool) -> bytes:
        """Status line and headers."""
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            f"Content-Type: {self.kind}",
            f"Content-Length: {len(self.body)}",
            # What was published never changes, so a browser may keep a picture.
            f"Cache-Control: {'private, max-age=3600, immutable' if self.cache else 'no-store'}",
            f"Connection: {'keep-alive' if keep else 'close'}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n" + _SECURITY + "\r\n").encode("latin-1")


def problem(status: int, why: str) -> Response:
    """An answer that says in one line what is wrong."""
    return Response(json.dumps({"error": " ".join(why.split())}).encode(), status=status)


def parse(head: bytes) -> Request:
    """A request from the bytes up to the empty line. Raises BadRequestError."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
        raise BadRequestError("not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name.lower() in headers:
            raise BadRequestError("malformed headers")
        headers[name.lower()] = value.strip()
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequestError("requests have no body here")
    try:
        url = urlsplit(words[1])
        query = dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=20, errors="strict"))
        path = unquote(url.path, errors="strict")
    except ValueError as error:
        raise BadRequestError("malformed address") from error
    return Request(words[0], path, query, headers)


class HttpServer:
    """Life cycle: ``start`` → ``stop``. ``handle`` answers each request; what it raises becomes a 500."""

    def __init__(self, handle: Callable[[Request], Awaitable[Response]], port: int = 0) -> None:
        self._handle = handle
        self._wanted = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen on loopback. Raises UsageError when the port is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, HOST, self._wanted, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {HOST}:{self._wanted} ({error.strerror}); choose another --port"
            ) from error

    async def stop(self) -> None:
        """Stop listening and hang up."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._open) >= MAX_CONNECTIONS:
                await self._send(writer, problem(503, "too many connections"), keep=False)
                return
            self._open.add(task)
            while await self._exchange(reader, writer):
                pass
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _log.debug("viewer connection ended")
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; True when another may follow."""
        method = "GET"
        try:
            async with asyncio.timeout(IDLE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            request = parse(head)
            method = request.method
            keep = request.headers.get("connection", "keep-alive").lower() != "close"
            answer = await self._answer(request)
        except asyncio.LimitOverrunError:
            keep, answer = False, problem(431, "request too large")
        except BadRequestError as error:
            keep, answer = False, problem(400, str(error))
        await self._send(writer, answer, keep, body=method != "HEAD")
        return keep

    async def _answer(self, request: Request) -> Response:
        """What the handler answers; what it does not know how to answer is told in the log, and is a 500."""
        task = asyncio.ensure_future(self._handle(request))
        try:
            await asyncio.wait({task}, timeout=ANSWER_S)
        finally:
            late = not task.done()
            task.cancel()
        if late:
            return problem(503, "this took too long; ask for less")
        error = task.exception()
        if error is not None:
            _log.error("viewer.failed path=%s", request.path, exc_info=error)
            return problem(500, f"{type(error).__name__} while answering; the terminal says more")
        return task.result()

    async def _send(
        self, writer: asyncio.StreamWriter, answer: Response, keep: bool, body: bool = True
    ) -> None:
        writer.write(answer.head(keep))
        if body:
            writer.write(answer.body)
        async with asyncio.timeout(ANSWER_S):
            await writer.drain()
