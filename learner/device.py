"""Where and how politely the learner computes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_LAST = 19  # the highest niceness


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


def bf16_reason(device: torch.device) -> str:
    """Why "auto" takes bf16 on ``device``, or does not, in words."""
    if use_bf16("auto", device):
        return "used: multiplied in hardware"
    if device.type == "cuda":
        return "not used: this GPU does not multiply bf16"
    return "not used: this processor does not multiply bf16 (neither AMX nor avx512_bf16)"


@contextlib.contextmanager
def use_tf32(precision: str, device: torch.device) -> Iterator[None]:
    """While it lasts, fp32 products on a GPU go through its TF32 units, unless ``precision`` is fp32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    wanted = device.type == "cuda" and precision != "fp32"
    if wanted:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def lower_priority(nice: int, idle: bool) -> None:
    """Give way to the control loop: raise this process's niceness to ``nice``, or with ``idle`` run only
    when nothing else wants the processor (SCHED_IDLE). Later threads and children inherit it.

    Both are properties of a thread, and libraries start theirs when they are imported: every thread
    there is now is lowered.
    """
    for thread in threads():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            if nice > os.getpriority(os.PRIO_PROCESS, thread):
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            if idle and hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    _lower_group(_LAST if idle else nice)


def threads(pid: int | None = None) -> list[int]:
    """The kernel's numbers of a process's threads (default: this one's)."""
    return [int(task) for task in os.listdir(f"/proc/{'self' if pid is None else pid}/task")]


def one_thread_beside(robot: bool, configured: int) -> int:
    """How many threads may compute: as configured, else one where a ``robot`` runs on this machine.

    0 leaves the choice to torch. Beside a robot a second thread would only take the caches of the core
    that keeps time. Sets torch's number too, for what is computed outside a training run.
    """
    count = configured or (1 if robot else 0)
    if count:
        torch.set_num_threads(count)
    return count


def _lower_group(nice: int) -> None:
    """Where the kernel groups processes by session, niceness counts within the group only: lower that too."""
    with contextlib.suppress(
        OSError
    ):  # no autogroups in this kernel, or the rate limit of one write in 100 ms
        Path("/proc/self/autogroup").write_text(str(nice))
