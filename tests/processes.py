"""Whether a process still runs, as the kernel says."""

from __future__ import annotations

from pathlib import Path


def state(pid: int) -> str:
    """The letter of proc_pid_stat(5), such as S or R; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has waited for."""
    return state(pid) not in ("", "Z")
