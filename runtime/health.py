"""Is the robot well: subsystems that must keep beating, as JSON and as Prometheus text.

Every part that must stay alive beats a ``HealthBoard``; silence longer than its limit makes it
unhealthy. ``HealthServer`` serves the board on loopback: ``GET /healthz`` (200 or 503) and
``GET /metrics``; with a robot also a page (``/``, ``/state``) whose only button is ``POST /estop``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hal.clock import Clock
from runtime import panel
from runtime.errors import RuntimeFault
from runtime.metrics import Metric, prometheus_text
from runtime.remote.facade import RobotSnapshot

_log = logging.getLogger(__name__)


class HealthError(RuntimeFault):
    """The health endpoint cannot listen where it should."""


class HealthConfig(BaseModel):
    """Where the health endpoint listens (loopback only; port 0 lets the system choose)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=9464, ge=0, le=65535)
    request_timeout_s: float = Field(default=2.0, gt=0.0, le=10.0)
    max_request_bytes: int = Field(default=4096, ge=256, le=65536)
    max_connections: int = Field(default=16, ge=1, le=256)

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(f"the health endpoint is unauthenticated, so host = {host!r} must be loopback")
        return host


@dataclass(frozen=True, slots=True)
class SubsystemHealth:
    """One subsystem: is it well, seconds since it last beat (None: never), and one line about it."""

    ok: bool
    age_s: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Every subsystem at one instant; ``ok`` when all are."""

    ok: bool
    subsystems: dict[str, SubsystemHealth]


@dataclass(slots=True)
class _Beat:
    limit_ns: int
    at_ns: int | None = None
    failed: bool = False
    detail: str = "not started"


class HealthBoard:
    """Last beats of named subsystems, judged against each one's own limit.

    ``limits_s`` maps a subsystem's name to the longest silence, in seconds, that still counts as
    well. Cheap enough to beat in every tick.
    """

    def __init__(self, limits_s: Mapping[str, float], clock: Clock) -> None:
        self._clock = clock
        self._beats = {name: _Beat(round(limit * 1e9)) for name, limit in limits_s.items()}

    def beat(self, name: str, detail: str = "") -> None:
        """``name`` is alive and well now. Raises KeyError for a name the board was not made with."""
        beat = self._beats[name]
        beat.at_ns, beat.failed, beat.detail = self._clock.now_ns(), False, detail

    def fail(self, name: str, detail: str) -> None:
        """``name`` reports that it is not well, until it beats again."""
        beat = self._beats[name]
        beat.at_ns, beat.failed, beat.detail = self._clock.now_ns(), True, detail

    def report(self) -> HealthReport:
        """The verdict on every subsystem now."""
        now_ns = self._clock.now_ns()
        subsystems = {name: _judge(beat, now_ns) for name, beat in self._beats.items()}
        return HealthReport(all(s.ok for s in subsystems.values()), subsystems)


def _judge(beat: _Beat, now_ns: int) -> SubsystemHealth:
    if beat.at_ns is None:
        return SubsystemHealth(False, None, beat.detail)
    age_ns = now_ns - beat.at_ns
    if beat.failed:
        return SubsystemHealth(False, age_ns / 1e9, beat.detail)
    if age_ns > beat.limit_ns:
        return SubsystemHealth(
            False, age_ns / 1e9, f"silent for {age_ns / 1e9:.1f} s ({beat.detail or 'was well'})"
        )
    return SubsystemHealth(True, age_ns / 1e9, beat.detail)


def health_json(report: HealthReport) -> str:
    """The report as /healthz shows it."""
    return json.dumps(
        {
            "ok": report.ok,
            "subsystems": {
                name: {
                    "ok": s.ok,
                    "age_s": None if s.age_s is None else round(s.age_s, 3),
                    "detail": s.detail,
                }
                for name, s in report.subsystems.items()
            },
        }
    )


def board_metrics(report: HealthReport) -> list[Metric]:
    """``ratchet_up`` and the age of each subsystem's last beat."""
    metrics = [Metric("up", "gauge", "1 when every subsystem is well", float(report.ok))]
    for name, subsystem in report.subsystems.items():
        labels = {"subsystem": name}
        metrics.append(
            Metric("subsystem_up", "gauge", "1 when the subsystem is well", float(subsystem.ok), labels)
        )
        age = math.nan if subsystem.age_s is None else subsystem.age_s
        metrics.append(
            Metric("subsystem_age_seconds", "gauge", "Time since the subsystem last beat", age, labels)
        )
    return metrics


class Stoppable(Protocol):
    """What the page needs of a robot (``runtime.remote.facade.RobotFacade``)."""

    async def state(self) -> RobotSnapshot: ...
    async def estop(self, reason: str) -> None: ...


class HealthServer:
    """A small HTTP/1.1 server: GET, HEAD and one POST, no keep-alive, bounded in size, time and
    connections (further ones are hung up on). A request's body is never read.

    ``metrics`` is called for each scrape and must not block. Life cycle: ``start`` → ``stop``.
    """

    def __init__(
        self,
        config: HealthConfig,
        board: HealthBoard,
        metrics: Callable[[], Iterable[Metric]] = tuple,
        robot: Stoppable | None = None,
    ) -> None:
        self._robot = robot
        self._config = config
        self._board = board
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """The port it listens on. Raises HealthError before ``start``."""
        if self._server is None or not self._server.sockets:
            raise HealthError("the health endpoint is not running", "start it first")
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen. Raises HealthError when the port is taken."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._config.host, self._config.port, limit=self._config.max_request_bytes
            )
        except OSError as error:
            raise HealthError(
                f"cannot listen on {self._config.host}:{self._config.port} ({error.strerror})",
                "choose another [health] port",
            ) from error

    async def stop(self) -> None:
        """Stop listening and hang up; safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*self._open)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= self._config.max_connections:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (TimeoutError, ConnectionError):
            _log.debug("health request abandoned")
        finally:
            del self._open[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(431, "text/plain", "request too large\n")
        except asyncio.IncompleteReadError:
            return _response(400, "text/plain", "incomplete request\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, "text/plain", "not an HTTP/1 request\n")
        method, target = words[0], words[1].split(b"?", 1)[0]
        if self._robot is not None and (method, target) == (b"POST", b"/estop"):
            return await self._stop(self._robot, head)
        if method not in (b"GET", b"HEAD"):
            return _response(405, "text/plain", "only GET and HEAD, and POST /estop\n")
        status, kind, body = await self._panel(target, head) or self._page(target)
        return _response(status, kind, body, head_only=method == b"HEAD")

    async def _stop(self, robot: Stoppable, head: bytes) -> bytes:
        """The button. The flag is raised before anything is awaited."""
        fields = panel.headers_of(head)
        why = "malformed headers\n" if fields is None else panel.refusal(fields, self.port)
        if why is not None:
            return _response(403, "text/plain", why)
        await robot.estop("e-stop from the web page")
        _log.warning("web e-stop")
        return _response(200, "text/plain", "emergency stop latched\n")

    async def _panel(self, target: bytes, head: bytes) -> tuple[int, str, str] | None:
        if self._robot is None or target not in (b"/", b"/state"):
            return None
        if not panel.own_host(panel.headers_of(head) or {}, self.port):
            return 403, "text/plain", f"open it as http://127.0.0.1:{self.port}/\n"
        if target == b"/":
            return 200, "text/html; charset=utf-8", panel.PAGE
        snapshot = await self._robot.state()
        return 200, "application/json", panel.state_json(snapshot, well=self._board.report().ok) + "\n"

    def _page(self, target: bytes) -> tuple[int, str, str]:
        if target == b"/healthz":
            report = self._board.report()
            return (200 if report.ok else 503), "application/json", health_json(report) + "\n"
        if target == b"/metrics":
            metrics = [*board_metrics(self._board.report()), *self._metrics()]
            return 200, "text/plain; version=0.0.4; charset=utf-8", prometheus_text(metrics)
        return 404, "text/plain", "try /healthz or /metrics\n"


_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _response(status: int, kind: str, body: str, *, head_only: bool = False) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        f"Cache-Control: no-store\r\n{panel.SECURITY}Connection: close\r\n\r\n"
    ).encode()
    return head if head_only else head + data
