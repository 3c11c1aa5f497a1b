"""The revocation list: token ids and certificate serials that count no more, read again when it changes."""

from __future__ import annotations

import re
import time
from pathlib import Path

from protos.access.errors import CredentialsError, UnidentifiedError

_LINE = re.compile(r"(token|cert):([0-9a-f]{1,40})")
_LOOK_AGAIN_S = 1.0
_MAX_BYTES = 1 << 20


class RevokedList:
    """A text file of lines ``token:<id>`` and ``cert:<serial in hex>``; ``None`` is an empty list.

    A list that cannot be read, or that holds something else, lets nobody in: it may name anybody.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._looked = -_LOOK_AGAIN_S
        self._entries: frozenset[str] = frozenset()
        self._trouble: str | None = None

    def load(self) -> None:
        """Read the list now. Raises CredentialsError when it cannot be read."""
        self._refresh()
        if self._trouble is not None:
            raise CredentialsError(self._trouble, "mend it or write it anew with `ratchet keys revoke`")

    def check(self, entry: str, name: str) -> None:
        """Raise UnidentifiedError when ``entry`` ("token:…" or "cert:…") is on the list."""
        if self._path is None:
            return
        if time.monotonic() - self._looked >= _LOOK_AGAIN_S:
            self._refresh()
        if self._trouble is not None:
            raise UnidentifiedError("nobody can be let in: the revocation list cannot be read")
        if entry in self._entries:
            raise UnidentifiedError(f"the identity of {name} has been revoked", "ask for a new one")

    def _refresh(self) -> None:
        if self._path is None:
            return
        self._looked = time.monotonic()
        try:
            info = self._path.stat()
            stamp = (info.st_mtime_ns, info.st_size)
            if stamp == self._stamp and self._trouble is None:
                return
            if info.st_size > _MAX_BYTES:
                self._trouble = f"{self._path} is larger than {_MAX_BYTES} bytes"
                return
            lines = self._path.read_text("ascii").split()
        except (OSError, UnicodeDecodeError) as error:
            self._trouble = f"cannot read {self._path} ({error})"
            return
        wrong = [line for line in lines if _LINE.fullmatch(line) is None]
        self._trouble = f"{self._path} holds {wrong[0][:40]!r}, no revocation" if wrong else None
        self._entries, self._stamp = frozenset(lines), stamp
