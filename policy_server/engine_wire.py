"""What the server and an engine process say to each other: short messages, and one shared memory.

Messages are JSON behind a four-byte length, over a socket pair that nobody else has. Observations
and chunks lie in the memory, at places that both sides compute from the manifest.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.manifest import Manifest

#: Observations in one request to an engine.
MAX_BATCH = 64
_MAX_MESSAGE = 16 * 2**20  # a manifest has at most 8 MiB
_BLOCK = 2**20
_LENGTH = struct.Struct("<I")
_ALIGN = 64

Message = dict[str, Any]


def send(end: socket.socket, message: Message, fd: int | None = None) -> None:
    """Send one message, with a descriptor when one is given. Raises OSError when the other end is gone."""
    body = json.dumps(message).encode()
    data = _LENGTH.pack(len(body)) + body
    if fd is not None:
        data = data[socket.send_fds(end, [data], [fd]) :]
    end.sendall(data)


def receive(end: socket.socket) -> tuple[Message, int | None]:
    """The next message, no byte of the one after it, and the descriptor that came with it.

    Raises EOFError when the other end is gone, TimeoutError after the socket's time-out.
    """
    block, fds, _, _ = socket.recv_fds(end, _LENGTH.size, 1)
    if not block:
        raise EOFError("the other end is gone")
    header = bytearray(block)
    _fill(end, header, _LENGTH.size)
    (length,) = _LENGTH.unpack(header)
    if length > _MAX_MESSAGE:
        raise EOFError(f"a message of {length} bytes")
    body = bytearray()
    _fill(end, body, length)
    message = json.loads(body)
    assert isinstance(message, dict)
    return message, fds[0] if fds else None


def parse(data: bytearray) -> Message | None:
    """The message that ``data`` is, None while it is not whole. Raises ValueError when it is none."""
    if len(data) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(data)
    if length > _MAX_MESSAGE or len(data) > _LENGTH.size + length:
        raise ValueError(f"a message of {length} bytes, {len(data)} are here")
    if len(data) < _LENGTH.size + length:
        return None
    message = json.loads(data[_LENGTH.size :])
    if not isinstance(message, dict):
        raise ValueError("a message that has no keys")
    return message


def _fill(end: socket.socket, data: bytearray, size: int) -> None:
    while len(data) < size:
        block = end.recv(min(size - len(data), _BLOCK))
        if not block:
            raise EOFError("the other end is gone")
        data += block


class Exchange:
    """Views of the shared memory for up to ``MAX_BATCH`` observations of one bundle.

    ``state`` float32 (B, S); ``images`` uint8 (B, H, W, 3) by camera; ``actions`` float32 (B, chunk, A);
    ``features`` float32 (B, D). Pages that no batch has reached cost nothing.
    """

    def __init__(self, fd: int, manifest: Manifest) -> None:
        self._memory = mmap.mmap(fd, exchange_bytes(manifest))
        parts = iter(_parts(manifest))
        self.state = self._view(*next(parts)).view(np.float32)
        self.images = {camera.name: self._view(*next(parts)) for camera in manifest.cameras}
        self.actions = self._view(*next(parts)).view(np.float32)
        self.features = self._view(*next(parts)).view(np.float32)

    def _view(self, start: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, np.uint8, count, start).reshape(shape)


def exchange_bytes(manifest: Manifest) -> int:
    """How large the memory for a bundle is."""
    start, shape = _parts(manifest)[-1]
    return start + int(np.prod(shape))


def _parts(manifest: Manifest) -> list[tuple[int, tuple[int, ...]]]:
    """Offset and shape in bytes of each array; the last axis of the float ones counts bytes."""
    shapes: list[tuple[int, ...]] = [(MAX_BATCH, 4 * len(manifest.state_names))]
    shapes += [(MAX_BATCH, camera.height, camera.width, 3) for camera in manifest.cameras]
    shapes += [(MAX_BATCH, manifest.chunk, 4 * len(manifest.action_names))]
    shapes += [(MAX_BATCH, 4 * manifest.feature_dim)]
    parts, start = [], 0
    for shape in shapes:
        parts.append((start, shape))
        start += -(-int(np.prod(shape)) // _ALIGN) * _ALIGN
    return parts
