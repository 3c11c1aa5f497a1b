"""What the door found out about the call at hand, for whoever answers it.

Context variables: a task that is made for one message of a stream keeps what was true when it was made.
"""

from __future__ import annotations

from contextvars import ContextVar

from protos.access.roles import Caller

#: Who was admitted; None where nobody stood at the door.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)

#: Bytes on the wire of the message that was parsed last.
REQUEST_BYTES: ContextVar[int] = ContextVar("request_bytes", default=0)


def caller_name() -> str:
    """The name of who was admitted: the same for all at a plaintext door, "" where there is no door."""
    caller = CALLER.get()
    return "" if caller is None else caller.name
