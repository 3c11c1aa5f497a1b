"""Serial ports that cannot be had: each says what is wrong and what to do."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.dynamixel.port import Port
from hal.errors import PortError


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    master, slave = os.openpty()
    yield master, os.ttyname(slave)
    os.close(slave)
    os.close(master)


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"there is no serial port .*none; plug the adapter in"):
        Port(str(tmp_path / "none"), 1_000_000).open()


def test_a_file_or_folder_is_not_a_serial_port(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, tmp_path):
        with pytest.raises(PortError, match="is not a serial port; give the adapter's path"):
            Port(str(path), 1_000_000).open()


def test_a_port_in_use_is_refused_until_it_is_let_go(terminal: tuple[int, str]) -> None:
    first, second = Port(terminal[1], 1_000_000), Port(terminal[1], 1_000_000)
    first.open()
    with pytest.raises(PortError, match="is in use by another program; end it first"):
        second.open()
    assert first.is_open
    first.close()
    first.close()
    second.open()
    second.close()


def test_a_port_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:  # root, as in a container, is never refused
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PortError, match=r"no permission to open /dev/ttyUSB0; .*dialout"):
        Port("/dev/ttyUSB0", 1_000_000).open()


def test_a_rate_that_does_not_exist() -> None:
    with pytest.raises(PortError, match="no serial port runs at 12345 baud; use one of"):
        Port("/dev/null", 12_345)


def test_bytes_pass_raw_and_a_silent_line_returns_at_the_deadline(terminal: tuple[int, str]) -> None:
    master, path = terminal
    port = Port(path, 1_000_000)
    port.open()
    every_byte = bytes(range(256))
    os.write(master, b"stale")
    port.send(every_byte)
    assert os.read(master, 512) == every_byte
    os.write(master, every_byte)
    buffer = bytearray(512)
    count = port.receive_into(memoryview(buffer), time.monotonic_ns() + 5_000_000_000)
    assert buffer[:count] == every_byte  # and the bytes from before the request were dropped
    start = time.monotonic_ns()
    assert port.receive_into(memoryview(buffer), start + 5_000_000) == 0
    assert time.monotonic_ns() - start >= 5_000_000
    assert port.receive_into(memoryview(buffer), start) == 0  # a deadline in the past does not wait
    port.close()


def test_a_vanished_port_closes_itself() -> None:
    master, slave = os.openpty()
    port = Port(os.ttyname(slave), 1_000_000)
    port.open()
    os.close(slave)
    os.close(master)
    with pytest.raises(PortError, match="has vanished; check the USB cable"):
        port.send(b"x")
    assert not port.is_open
    with pytest.raises(PortError, match="is not open"):
        port.send(b"x")
