"""Errors of the episode store. Each message is one line: what is wrong, where; what to do."""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything the episode store raises on purpose: one line for a person.

    ``what`` says what is wrong and where; ``remedy`` says what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what}; {self.remedy}" if self.remedy else self.what)


class StoreLockedError(StoreError):
    """Another process (or another handle in this one) writes to the store."""


class StoreFormatError(StoreError):
    """The folder is not an episode store, or one of a format this program cannot read."""


class RecordingError(StoreError):
    """An episode cannot be recorded on: the disk failed, or the writer was used wrongly."""


class DiskFullError(RecordingError):
    """No space left (or a file size or quota limit) while recording or publishing."""


class DamagedError(StoreError):
    """Stored bytes are missing, truncated or fail their checksum."""


class UnknownEpisodeError(StoreError):
    """No published episode has this id."""


class QueryError(StoreError):
    """The SQL is wrong or asks for something outside the catalogue."""


class ImportRefusedError(StoreError):
    """A dataset cannot be imported as it is; nothing already recorded is touched."""
