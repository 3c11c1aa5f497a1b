"""MJPEG over HTTP on loopback: how the bench's cameras reach the real OpenCV camera driver.

``http://127.0.0.1:PORT/front.mjpg`` is an endless ``multipart/x-mixed-replace`` of JPEGs, each with
its length and its capture time (``X-Timestamp-Ns``, monotonic). A client that is slow skips
pictures; it never delays the others.
"""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast

import cv2
import numpy as np

from hal.errors import BenchError
from hal.types import Image

log = logging.getLogger(__name__)

CameraMode = Literal["ok", "freeze", "black", "half", "stall", "gone"]
MODES: tuple[CameraMode, ...] = ("ok", "freeze", "black", "half", "stall", "gone")

JPEG_QUALITY = 95
_NOISE_BANK = 7  # differing noise pictures, cycled: two successive frames are never equal
_BOUNDARY = "ratchetframe"
_STALE_CHECK_S = 0.5


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    jpeg: bytes
    t_ns: int


class Feed:
    """The newest JPEG of one camera, and the ways it can fail.

    ``freeze`` repeats the last picture, ``black`` sends black ones, ``half`` only the first half of each
    JPEG, ``stall`` sends nothing, ``gone`` closes connections and refuses new ones.
    """

    def __init__(self, name: str, noise_seed: int = 0) -> None:
        self.name = name
        self.mode: CameraMode = "ok"
        self._fresh = threading.Condition()
        self._part: _Part | None = None
        self._rng = np.random.default_rng(noise_seed)
        self._noise: list[Image] = []

    def publish(self, image: Image, t_ns: int) -> None:
        """Encode and offer ``image`` (uint8 RGB), taken at ``t_ns``; a little sensor noise is added."""
        if self.mode in ("stall", "gone"):
            return
        if self.mode == "freeze" and self._part is not None:
            self._offer(self._part.jpeg, t_ns)
        else:
            self._offer(
                encode(np.zeros_like(image) if self.mode == "black" else self._with_noise(image)), t_ns
            )

    def replay(self, jpeg: bytes, t_ns: int) -> None:
        """Offer a picture that is encoded already, as taken at ``t_ns``. It cannot be made black."""
        if self.mode in ("stall", "gone"):
            return
        part = self._part
        self._offer(part.jpeg if part is not None and self.mode == "freeze" else jpeg, t_ns)

    def _offer(self, jpeg: bytes, t_ns: int) -> None:
        number = 0 if self._part is None else self._part.number + 1
        if self.mode == "half":
            jpeg = jpeg[: len(jpeg) // 2]
        with self._fresh:
            self._part = _Part(number, jpeg, t_ns)
            self._fresh.notify_all()

    def after(self, number: int, timeout_s: float) -> _Part | None:
        """The newest picture if it is newer than ``number``, waiting up to ``timeout_s``; else None."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._part is not None and self._part.number > number, timeout_s)
            part = self._part
        return part if part is not None and part.number > number else None

    def _with_noise(self, image: Image) -> Image:
        if not self._noise or self._noise[0].shape != image.shape:
            self._noise = [self._rng.integers(0, 4, image.shape).astype(np.uint8) for _ in range(_NOISE_BANK)]
        self._noise.append(self._noise.pop(0))
        return cast(Image, cv2.add(image, self._noise[0]))


def encode(image: Image) -> bytes:
    """uint8 RGB (H, W, 3) as JPEG."""
    ok, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise BenchError(f"a picture of shape {image.shape} cannot be encoded as JPEG")
    return bytes(jpeg)


class MjpegServer:
    """Serves feeds on a loopback port of the system's choice, one thread per client."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.feeds = {f"/{feed.name}.mjpg": feed for feed in feeds}
        self._thread = threading.Thread(target=self._server.serve_forever, name="mjpeg", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    @property
    def urls(self) -> dict[str, str]:
        """Address of each camera's stream."""
        port = self._server.server_address[1]
        return {feed.name: f"http://127.0.0.1:{port}{path}" for path, feed in self._server.feeds.items()}

    def stop(self) -> None:
        """Stop serving and close every connection."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.feeds: dict[str, Feed] = {}
        self.closing = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        feed = self.server.feeds.get(self.path)
        if feed is None or feed.mode == "gone":
            self.send_error(404 if feed is None else 503)
            return
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace;boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(feed)
        except (BrokenPipeError, ConnectionResetError):
            log.debug("mjpeg_client_left camera=%s", feed.name)

    def _stream(self, feed: Feed) -> None:
        number = -1
        self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
        while not self.server.closing.is_set() and feed.mode != "gone":
            part = feed.after(number, _STALE_CHECK_S)
            if part is None:
                continue
            number = part.number
            head = (
                f"Content-Type: image/jpeg\r\nContent-Length: {len(part.jpeg)}\r\n"
                f"X-Timestamp-Ns: {part.t_ns}\r\n\r\n"
            )
            # The closing boundary goes with the picture: a reader need not wait for the next one.
            self.wfile.write(head.encode() + part.jpeg + f"\r\n--{_BOUNDARY}\r\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        log.debug("mjpeg_request " + format, *args)
