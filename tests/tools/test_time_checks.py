"""What doctor says about time, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.checking import Finding
from tools.time_checks import time_findings


def findings(root: Path, **files: str) -> dict[str, Finding]:
    for path, text in files.items():
        file = root / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {finding.what: finding for finding in time_findings(root)}


@pytest.mark.parametrize(
    ("what", "path", "good", "bad", "remedy"),
    [
        ("autogroup", "proc/sys/kernel/sched_autogroup_enabled", "0\n", "1\n", "sched_autogroup_enabled=0"),
        (
            "processor frequency",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "performance\n",
            "powersave\n",
            "cpupower",
        ),
        (
            "kernel preemption",
            "sys/kernel/debug/sched/preempt",
            "none voluntary (full) lazy\n",
            "(none) voluntary full lazy\n",
            "preempt=full",
        ),
    ],
)
def test_a_setting_and_its_remedy(
    tmp_path: Path, what: str, path: str, good: str, bad: str, remedy: str
) -> None:
    name = path.replace("/", "__")
    assert findings(tmp_path, **{name: good})[what].verdict == "ok"
    found = findings(tmp_path, **{name: bad})[what]
    assert found.verdict == "warning"
    assert remedy in found.remedy


@pytest.mark.parametrize(("runtime", "verdict"), [("950000", "ok"), ("-1", "warning"), ("100000", "warning")])
def test_throttling(tmp_path: Path, runtime: str, verdict: str) -> None:
    kernel = "proc__sys__kernel__sched_rt_"
    found = findings(tmp_path, **{f"{kernel}runtime_us": runtime, f"{kernel}period_us": "1000000"})
    assert found["real-time throttling"].verdict == verdict


def test_a_kernel_that_says_nothing_is_not_blamed(tmp_path: Path) -> None:
    names = ("real-time throttling", "autogroup", "processor frequency", "kernel preemption")
    found = findings(tmp_path)
    assert [found[name].verdict for name in names] == ["ok"] * 4
