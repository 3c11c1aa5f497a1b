"""The board judges silence; the endpoint tells it over HTTP and gives way to no client."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from hal.clock import LockstepClock
from runtime.health import HealthBoard, HealthConfig, HealthError, HealthServer
from runtime.metrics import Metric, prometheus_text
from runtime.panel import HEADER_VALUE
from runtime.remote.facade import RobotSnapshot

CONFIG = HealthConfig(port=0, request_timeout_s=1.0, max_request_bytes=512, max_connections=2)


@pytest.fixture
def clock() -> LockstepClock:
    return LockstepClock(10**9)


@pytest.fixture
def board(clock: LockstepClock) -> HealthBoard:
    return HealthBoard({"bus": 0.1, "store": 1.0}, clock)


@pytest.fixture
async def server(board: HealthBoard) -> AsyncIterator[HealthServer]:
    server = HealthServer(CONFIG, board, lambda: [Metric("ticks_total", "counter", "Control ticks", 42.0)])
    await server.start()
    yield server
    await server.stop()


async def get(server: HealthServer, request: bytes) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


def test_a_subsystem_is_unwell_until_it_beats_and_when_it_falls_silent(
    clock: LockstepClock, board: HealthBoard
) -> None:
    assert board.report().subsystems["bus"].detail == "not started"
    board.beat("bus")
    board.beat("store", "writing")
    assert board.report().ok
    clock.advance(100_000_000)
    assert board.report().ok, "exactly at the limit still counts"
    clock.advance(1)
    report = board.report()
    assert not report.ok
    assert report.subsystems["store"].ok
    assert "silent" in report.subsystems["bus"].detail


def test_a_reported_failure_lasts_until_the_next_beat(board: HealthBoard) -> None:
    board.beat("bus")
    board.beat("store")
    board.fail("store", "disk full")
    assert board.report().subsystems["store"].detail == "disk full"
    assert not board.report().ok
    board.beat("store")
    assert board.report().ok


def test_an_unknown_subsystem_is_a_defect(board: HealthBoard) -> None:
    with pytest.raises(KeyError):
        board.beat("bsu")


async def test_healthz_turns_503_with_the_culprit(server: HealthServer, board: HealthBoard) -> None:
    board.beat("bus")
    board.beat("store")
    assert (await get(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
    board.fail("bus", "motor 3 silent")
    status, body = await get(server, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert status == 503
    assert json.loads(body)["subsystems"]["bus"] == {"ok": False, "age_s": 0.0, "detail": "motor 3 silent"}


async def test_metrics_carry_board_and_loop(server: HealthServer, board: HealthBoard) -> None:
    board.beat("bus")
    status, body = await get(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert status == 200
    lines = body.splitlines()
    assert "# TYPE ratchet_ticks_total counter" in lines
    assert "ratchet_ticks_total 42.0" in lines
    assert 'ratchet_subsystem_up{subsystem="bus"} 1.0' in lines
    assert 'ratchet_subsystem_up{subsystem="store"} 0.0' in lines
    assert 'ratchet_subsystem_age_seconds{subsystem="store"} NaN' in lines


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01 \x00 \xff\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 2000 + b"\r\n\r\n", 431),
    ],
)
async def test_bad_requests_get_an_answer(server: HealthServer, request_bytes: bytes, status: int) -> None:
    assert (await get(server, request_bytes))[0] == status


async def test_a_client_that_says_nothing_is_dropped(server: HealthServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_connections_are_bounded_and_recover(server: HealthServer, board: HealthBoard) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(0.8):  # long before the idle ones time out
        assert await reader.read() == b""
    async with asyncio.timeout(5):
        await asyncio.gather(*(reader.read() for reader, _ in idle))
    assert (await get(server, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == 200
    for _, opened in [*idle, (reader, writer)]:
        opened.close()


async def test_stop_hangs_up_on_those_who_wait(server: HealthServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await asyncio.sleep(0.02)
    async with asyncio.timeout(0.8):
        await server.stop()
        await reader.read()
    writer.close()


async def test_a_taken_port_is_one_line(server: HealthServer, board: HealthBoard) -> None:
    other = HealthServer(HealthConfig(port=server.port), board)
    with pytest.raises(HealthError, match=r"cannot listen on 127\.0\.0\.1"):
        await other.start()


def test_the_endpoint_never_leaves_loopback() -> None:
    with pytest.raises(ValidationError, match="loopback"):
        HealthConfig(host="0.0.0.0")


def test_prometheus_text_groups_and_escapes() -> None:
    text = prometheus_text(
        [
            Metric("a", "gauge", "first", 1.0, {"x": 'quo"te\\\n'}),
            Metric("b", "gauge", "other", math.inf),
            Metric("a", "gauge", "first", -math.inf, {"x": "y"}),
        ]
    )
    assert text.splitlines() == [
        "# HELP ratchet_a first",
        "# TYPE ratchet_a gauge",
        'ratchet_a{x="quo\\"te\\\\\\n"} 1.0',
        'ratchet_a{x="y"} -Inf',
        "# HELP ratchet_b other",
        "# TYPE ratchet_b gauge",
        "ratchet_b +Inf",
    ]


class Stopped:
    """A robot that notes its stops."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    async def state(self) -> RobotSnapshot:
        return RobotSnapshot("bench", "teleop", 'because of "<script>"')

    async def estop(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
async def page(board: HealthBoard) -> AsyncIterator[tuple[HealthServer, Stopped]]:
    robot = Stopped()
    server = HealthServer(CONFIG, board, robot=robot)
    await server.start()
    yield server, robot
    await server.stop()


def estop(
    server: HealthServer, *fields: str, host: str = "127.0.0.1", header: str = "x-ratchet: estop"
) -> bytes:
    lines = ["POST /estop HTTP/1.1", f"Host: {host}:{server.port}", header, *fields]
    return "\r\n".join([line for line in lines if line] + ["", ""]).encode()


async def test_the_page_has_a_button_and_shows_the_state(page: tuple[HealthServer, Stopped]) -> None:
    server, robot = page
    host = f"Host: localhost:{server.port}\r\n\r\n".encode()
    status, body = await get(server, b"GET / HTTP/1.1\r\n" + host)
    assert status == 200
    assert "STOP" in body
    assert HEADER_VALUE in body
    status, body = await get(server, b"GET /state HTTP/1.1\r\n" + host)
    state = json.loads(body)
    assert (status, state["mode"], state["well"]) == (200, "teleop", False)
    assert (await get(server, b"GET /state HTTP/1.1\r\nHost: evil.example\r\n\r\n"))[0] == 403
    assert robot.reasons == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
async def test_the_button_stops(page: tuple[HealthServer, Stopped], host: str) -> None:
    server, robot = page
    same = f"Origin: http://{host}:{server.port}"
    assert (await get(server, estop(server, host=host)))[0] == 200
    assert (await get(server, estop(server, same, "Sec-Fetch-Site: same-origin", host=host)))[0] == 200
    assert len(robot.reasons) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"host": "evil.example"},
        {"header": ""},
        {"header": "x-ratchet: go"},
        {"fields": ("Origin: http://evil.example",)},
        {"fields": ("Origin: null",)},
        {"fields": ("Sec-Fetch-Site: cross-site",)},
        {"fields": ("X-Ratchet: estop",)},
        {"fields": ("no colon",)},
    ],
)
async def test_a_foreign_page_presses_nothing(
    page: tuple[HealthServer, Stopped], change: dict[str, Any]
) -> None:
    server, robot = page
    arguments = {name: value for name, value in change.items() if name != "fields"}
    assert (await get(server, estop(server, *change.get("fields", ()), **arguments)))[0] == 403
    assert robot.reasons == []


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"OPTIONS", b"HEAD"])
async def test_nothing_else_stops_and_nothing_else_is_posted(
    page: tuple[HealthServer, Stopped], method: bytes
) -> None:
    server, robot = page
    request = estop(server).replace(b"POST", method)
    assert (await get(server, request))[0] in (404, 405)
    assert (await get(server, estop(server).replace(b"/estop", b"/enable")))[0] == 405
    assert robot.reasons == []


async def test_a_body_is_not_waited_for(page: tuple[HealthServer, Stopped]) -> None:
    server, robot = page
    assert (await get(server, estop(server, "Content-Length: 1000000")))[0] == 200
    assert robot.reasons == ["e-stop from the web page"]
