"""Which errors are a user's to mend: they become one line and an exit code, never a traceback."""

from __future__ import annotations

import sqlite3


class UsageError(Exception):
    """A command was asked for something it cannot do; the message says what and what to do."""


def user_errors() -> tuple[type[BaseException], ...]:
    """Base classes of every error raised on purpose. Imported late: only when one was raised."""
    from episodes.errors import StoreError
    from hal.errors import HalError
    from learner.errors import LearnerError
    from policies.errors import PolicyError
    from policy_server.errors import ServerError
    from protos.access.errors import AccessError
    from runtime.errors import RuntimeFault

    return (
        AccessError,
        HalError,
        StoreError,
        PolicyError,
        RuntimeFault,
        ServerError,
        LearnerError,
        UsageError,
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
        sqlite3.OperationalError,
    )
