"""How far a recording session got, so that the same command goes on where it was.

One small file: session → how many episodes are kept. A session is a robot and a task; its note goes when
it is complete. Losing the file costs a count, nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

STATE = Path.home() / ".local" / "state" / "ratchet" / "record.json"


class SessionNote:
    """The count of one session."""

    def __init__(self, path: Path, robot: str, task: str) -> None:
        self._path = path
        self._key = f"{robot}\n{task}"

    def kept(self) -> int:
        """Episodes kept so far; 0 for a new session or an unreadable note."""
        count = self._read().get(self._key, 0)
        return count if isinstance(count, int) and count > 0 else 0

    def set(self, kept: int) -> None:
        """Note ``kept`` episodes; 0 forgets the session. A note that cannot be written is done without."""
        notes = {**self._read(), self._key: kept}
        if not kept:
            del notes[self._key]
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(notes))
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)

    def _read(self) -> dict[str, object]:
        try:
            notes = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}
