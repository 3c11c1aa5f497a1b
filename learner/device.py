"""Where and how politely the learner computes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run in bf16 autocast.

    ``auto`` asks for hardware that multiplies bf16: emulated, a step takes four times as long as fp32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile")
    )


def lower_priority(nice: int, idle: bool) -> None:
    """Give way to the control loop: raise this process's niceness to ``nice``, or with ``idle`` run only
    when nothing else wants the processor (SCHED_IDLE). Children inherit it."""
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > now:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    _lower_group(nice)
    if idle and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _lower_group(nice: int) -> None:
    """Where the kernel groups processes by session, niceness counts within the group only: lower that too."""
    with contextlib.suppress(
        OSError
    ):  # no autogroups in this kernel, or the rate limit of one write in 100 ms
        Path("/proc/self/autogroup").write_text(str(nice))
