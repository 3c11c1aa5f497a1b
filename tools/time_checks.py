"""Will this machine let a loop keep its time: priorities, locked memory, throttling, frequency, grouping."""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.checking import Finding, ok, warning

BUS_PRIORITY = 20  # the higher of what the bus processes and the control loop ask for by default
NICE = -10  # of the service's other threads
_UNIT = "run it as the systemd unit does"
_RT_RUNTIME = "proc/sys/kernel/sched_rt_runtime_us"
_RT_PERIOD = "proc/sys/kernel/sched_rt_period_us"
_AUTOGROUP = "proc/sys/kernel/sched_autogroup_enabled"
_PREEMPT = "sys/kernel/debug/sched/preempt"
_LEAST_SHARE = 0.5  # of a second that real-time threads may have before the kernel stops them


def time_findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Everything that decides how late a tick may be. Files of the kernel are looked for below ``root``."""
    yield _priority()
    yield _niceness()
    yield _memory_lock()
    yield _throttling(root)
    yield _idle_scheduling(root)
    yield _autogroup(root)
    yield _governor(root)
    yield _preemption(root)


def _priority() -> Finding:
    refused = _priority_refused()
    if refused:
        return warning(
            "real-time priority",
            f"SCHED_FIFO is refused ({refused}): the arm may stutter on a busy machine",
            f"{_UNIT}, or allow '@dialout - rtprio {BUS_PRIORITY}' in /etc/security/limits.conf",
        )
    return ok("real-time priority", f"SCHED_FIFO {BUS_PRIORITY} is granted")


def _priority_refused() -> str:
    """Try it; nothing else tells. Why it is refused, or ""."""
    with ThreadPoolExecutor(1) as thread:  # which takes the priority along when it ends
        return thread.submit(_take_priority).result()


def _take_priority() -> str:
    """Ask for the bus processes' priority on this thread; why it is refused, or ""."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(BUS_PRIORITY))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _niceness() -> Finding:
    """The service's threads that do not keep time should not hold up the one that does."""
    with ThreadPoolExecutor(1) as thread:
        refused = thread.submit(_take_niceness).result()
    if refused:
        return warning(
            "niceness",
            f"{NICE} is refused ({refused}): recording may hold up a tick on a busy machine",
            f"{_UNIT}, or allow '@dialout - nice {NICE}' in /etc/security/limits.conf",
        )
    return ok("niceness", f"{NICE} is granted")


def _take_niceness() -> str:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _memory_lock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return ok("memory lock", "granted")
    return warning(
        "memory lock",
        f"only {soft >> 20} MiB may be locked: a page fault can delay the arm",
        f"{_UNIT}, or allow '@dialout - memlock unlimited' in /etc/security/limits.conf",
    )


def _throttling(root: Path) -> Finding:
    """The kernel stops real-time threads that take too much; ours take a tenth, a bug would take all."""
    runtime, period = _number(root / _RT_RUNTIME), _number(root / _RT_PERIOD)
    if runtime is None or not period:
        return ok("real-time throttling", "this kernel does not say")
    if runtime < 0:
        return warning(
            "real-time throttling",
            "it is off: a real-time thread that runs wild takes a processor for ever",
            "sudo sysctl kernel.sched_rt_runtime_us=950000",
        )
    share = runtime / period
    if share < _LEAST_SHARE:
        return warning(
            "real-time throttling",
            f"real-time threads may have only {share:.0%} of the time: ticks will be stopped half way",
            "sudo sysctl kernel.sched_rt_runtime_us=950000",
        )
    return ok("real-time throttling", f"real-time threads may have {share:.0%} of the time")


def _idle_scheduling(root: Path) -> Finding:
    """Whether the learner can be made to run only when nothing else wants to."""
    if not hasattr(os, "SCHED_IDLE"):
        return warning(
            "idle scheduling",
            "this system has no SCHED_IDLE: the learner is only niced",
            "learn on another machine, or keep it off the loop's processor with AllowedCPUs= in the unit",
        )
    groups = root / "sys/fs/cgroup/cgroup.controllers"
    has_cpu = groups.exists() and "cpu" in groups.read_text().split()
    return ok(
        "idle scheduling", "SCHED_IDLE" + (", and CPUWeight=idle of the unit's slice" if has_cpu else "")
    )


def _autogroup(root: Path) -> Finding:
    if _number(root / _AUTOGROUP) == 1:
        return warning(
            "autogroup",
            "niceness counts only within one terminal session: what runs in another gets a full share "
            "(the learner lowers its own group, other programs do not)",
            "sudo sysctl kernel.sched_autogroup_enabled=0, or run everything as units",
        )
    return ok("autogroup", "off: priorities count between all processes")


def _governor(root: Path) -> Finding:
    governors = {
        path.read_text().strip()
        for path in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")
    }
    if not governors:
        return ok("processor frequency", "not scaled by this system")
    if governors <= {"performance", "schedutil"}:
        return ok("processor frequency", f"governor {', '.join(sorted(governors))}")
    return warning(
        "processor frequency",
        f"governor {', '.join(sorted(governors))}: a processor that idles between ticks wakes up slowly",
        "sudo cpupower frequency-set -g performance",
    )


def _preemption(root: Path) -> Finding:
    """A kernel that is not preempted makes a real-time thread wait for other processes' system calls."""
    try:
        words = (root / _PREEMPT).read_text()
    except OSError:
        return ok("kernel preemption", "only root may see it")
    chosen = re.search(r"\((\w+)\)", words)
    model = chosen[1] if chosen else words.strip()
    if model in ("full", "lazy"):
        return ok("kernel preemption", model)
    return warning(
        "kernel preemption",
        f"{model}: a tick may wait for another process's system call",
        "boot with preempt=full, or now: echo full | sudo tee /sys/kernel/debug/sched/preempt",
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
