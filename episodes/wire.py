"""`episodes.sync` between two processes: requests and answers over a pair of byte streams.

A message is four bytes of length, a JSON object of that length, and as many bytes as its ``bytes`` says.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from typing import IO, Any

from episodes.errors import DamagedError, RecordingError, StoreError
from episodes.sync import PIECE_BYTES, Receiver

_LENGTH = struct.Struct(">I")
_HEAD_LIMIT = 1 << 20
_BODY_LIMIT = 64 << 20
PROTOCOL = 3


def write(stream: IO[bytes], head: dict[str, Any], body: bytes = b"") -> None:
    """Send one message. Raises RecordingError when the other side is gone."""
    text = json.dumps({**head, "bytes": len(body)}).encode()
    try:
        stream.write(_LENGTH.pack(len(text)) + text + body)
        stream.flush()
    except OSError as error:
        raise RecordingError("the other side hung up", "run it again: it goes on where it was") from error


def read(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or None at the end. Raises RecordingError for anything else."""
    length = stream.read(_LENGTH.size)
    if not length:
        return None
    try:
        (size,) = _LENGTH.unpack(length)
        if size > _HEAD_LIMIT:
            raise ValueError("a message head too long")
        head = json.loads(_exactly(stream, size))
        body = int(head["bytes"])
        if not 0 <= body <= _BODY_LIMIT:
            raise ValueError("a message body too long")
        return head, _exactly(stream, body)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise RecordingError(
            f"the other side does not speak `ratchet episodes sync` ({error})", "update ratchet there"
        ) from error


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("the message was cut short")
    return data


class RemoteLink:
    """`Link` to a `serve_receiver` at the other end of two pipes.

    ``last_words`` is asked why, when the other side hung up without saying.
    """

    def __init__(
        self, read_from: IO[bytes], write_to: IO[bytes], last_words: Callable[[], str] = lambda: ""
    ) -> None:
        self._in, self._out, self._last_words = read_from, write_to, last_words
        if self._answer().get("protocol") != PROTOCOL:
            raise RecordingError(
                "the other side has another version of this protocol", "update ratchet there"
            )

    def missing(self, episode_ids: list[str]) -> list[str]:
        """See Link."""
        self._write({"op": "missing", "ids": episode_ids})
        return [str(name) for name in self._answer()["missing"]]

    def offer(self, episode_id: str, marker: bytes) -> dict[str, int] | None:
        """See Link."""
        self._write({"op": "offer", "id": episode_id}, marker)
        answer = self._answer()
        if "damaged" in answer:
            raise DamagedError(str(answer["damaged"]), str(answer["remedy"]))
        sizes = answer["sizes"]
        return None if sizes is None else {str(name): int(size) for name, size in sizes.items()}

    def piece(self, episode_id: str, name: str, offset: int, data: bytes) -> None:
        """See Link; not answered, a failure comes with the commit."""
        assert len(data) <= PIECE_BYTES
        self._write({"op": "piece", "id": episode_id, "name": name, "offset": offset}, data)

    def commit(self, episode_id: str) -> list[str]:
        """See Link."""
        self._write({"op": "commit", "id": episode_id})
        return [str(name) for name in self._answer()["bad"]]

    def keeps(self, episode_id: str) -> bool:
        """See Link."""
        self._write({"op": "keeps", "id": episode_id})
        return bool(self._answer()["keeps"])

    def _write(self, head: dict[str, Any], body: bytes = b"") -> None:
        try:
            write(self._out, head, body)
        except RecordingError:
            self._answer()  # it said why before it hung up: a full disk, for one
            raise

    def _answer(self) -> dict[str, Any]:
        message = read(self._in)
        if message is None:
            why = self._last_words()
            raise RecordingError(
                f"the other side hung up{f' ({why})' if why else ''}",
                "run it again: it goes on where it was",
            )
        if "error" in message[0]:
            raise RecordingError(f"the other side: {message[0]['error']}")
        return message[0]


def serve_receiver(receiver: Receiver, read_from: IO[bytes], write_to: IO[bytes]) -> None:
    """Answer a `RemoteLink` until it hangs up. The first error is reported and ends it, but for an episode
    that is damaged, which is reported and the next one taken."""
    write(write_to, {"protocol": PROTOCOL})
    try:
        while (message := read(read_from)) is not None:
            head, body = message
            name = str(head.get("id"))
            if head.get("op") == "offer":
                write(write_to, _offered(receiver, name, body))
            elif head.get("op") == "missing":
                write(write_to, {"missing": receiver.missing(_ids(head))})
            elif head.get("op") == "piece":
                receiver.piece(name, str(head.get("name")), int(head.get("offset", 0)), body)
            elif head.get("op") == "keeps":
                write(write_to, {"keeps": receiver.keeps(name)})
            else:
                write(write_to, {"bad": receiver.commit(name)})
    except StoreError as error:
        refuse(write_to, error)
        raise


def _offered(receiver: Receiver, episode_id: str, marker: bytes) -> dict[str, Any]:
    try:
        return {"sizes": receiver.offer(episode_id, marker)}
    except DamagedError as error:
        return {"damaged": error.what, "remedy": error.remedy}


def _ids(head: dict[str, Any]) -> list[str]:
    ids = head.get("ids")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise RecordingError("the other side asked for no list of episodes", "update ratchet there")
    return ids


def refuse(write_to: IO[bytes], error: StoreError) -> None:
    """Tell the `RemoteLink` at the other end why nothing, or nothing more, is taken."""
    with contextlib.suppress(RecordingError):  # it hung up first
        write(write_to, {"error": str(error)})
