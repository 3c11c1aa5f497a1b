"""The units say what the design promises, and systemd itself finds nothing to complain about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("ratchet-runtime", "ratchet-policy-server", "ratchet-learner")

Settings = dict[str, list[str]]


def parse(name: str) -> dict[str, Settings]:
    """A unit file as section → key → values; systemd allows repeated keys, configparser does not."""
    sections: dict[str, Settings] = {}
    current: Settings = {}
    for line in (UNITS / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
            continue
        key, separator, value = line.partition("=")
        assert separator, f"{name}: {line!r} is no assignment"
        current.setdefault(key, []).append(value)
    return sections


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_notified_restarted_and_sandboxed(name: str) -> None:
    service = parse(f"{name}.service")["Service"]
    assert service["Type"] == ["notify"]
    assert service["ExecStart"][0].startswith("/opt/ratchet/.venv/bin/ratchet ")
    assert service["ExecStart"][0].split("--config ")[1].startswith("/etc/ratchet/")
    assert service["Restart"] == ["on-failure"]
    assert service["User"] == ["ratchet"]
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]
    assert service["DevicePolicy"] == ["closed"]
    assert service["CapabilityBoundingSet"] == [""]


def test_runtime_has_a_watchdog_and_the_priority_it_needs() -> None:
    service = parse("ratchet-runtime.service")["Service"]
    assert service["WatchdogSec"] == ["2"]
    assert service["WatchdogSignal"] == ["SIGABRT"]
    assert int(service["LimitRTPRIO"][0]) >= 20
    assert service["LimitMEMLOCK"] == ["infinity"]
    assert "RestrictRealtime" not in service
    assert "char-ttyUSB rw" in service["DeviceAllow"]


def test_policy_server_has_a_watchdog() -> None:
    service = parse("ratchet-policy-server.service")["Service"]
    assert service["WatchdogSec"] == ["60"]
    assert service["WatchdogSignal"] == ["SIGABRT"]


def test_a_shadows_threads_may_come_back_to_the_servers_niceness() -> None:
    service = parse("ratchet-policy-server.service")["Service"]
    assert service["LimitNICE"] == [f"+{service['Nice'][0]}"]


def test_sockets_survive_a_restart_of_one_service() -> None:
    for name in SERVICES:
        service = parse(f"{name}.service")["Service"]
        assert service["RuntimeDirectory"] == ["ratchet"]
        assert service["RuntimeDirectoryPreserve"] == ["yes"]


def test_learning_yields_to_control() -> None:
    control = parse("ratchet-control.slice")["Slice"]
    learn = parse("ratchet-learn.slice")["Slice"]
    assert int(control["CPUWeight"][0]) == 10000
    assert learn["CPUWeight"] == ["idle"]
    assert "MemoryMax" in learn
    learner = parse("ratchet-learner.service")["Service"]
    assert learner["Slice"] == ["ratchet-learn.slice"]
    assert learner["CPUSchedulingPolicy"] == ["idle"]
    server = parse("ratchet-policy-server.service")["Service"]
    assert 0 < int(server["Nice"][0]) < int(learner["Nice"][0])


def test_udev_rule_removes_the_ftdi_latency() -> None:
    lines = [
        line for line in (UNITS / "99-ratchet.rules").read_text().splitlines() if line and line[0] != "#"
    ]
    latency = [line for line in lines if 'ATTR{latency_timer}="1"' in line]
    assert len(latency) == 1
    assert 'DRIVERS=="ftdi_sio"' in latency[0]
    for line in lines:
        for clause in line.split(", "):
            assert "==" in clause or "+=" in clause or '="' in clause, clause


def installed(tmp_path: Path) -> list[Path]:
    """The units with their executable where one exists, so that only the units are judged."""
    executable = tmp_path / "ratchet"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    copies = []
    for unit in sorted([*UNITS.glob("*.service"), *UNITS.glob("*.slice")]):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/ratchet/.venv/bin/ratchet", str(executable)))
        copies.append(copy)
    return copies


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("systemd-analyze")
    if binary is None:
        pytest.skip("systemd-analyze is not installed here (package systemd)")
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_analyze_verify_is_clean(tmp_path: Path) -> None:
    copies = installed(tmp_path)
    result = analyze("verify", "--man=no", *map(str, copies))
    complaints = [line for line in result.stderr.splitlines() if "ratchet" in line]
    assert (result.returncode, complaints) == (0, [])


def test_systemd_analyze_verify_would_notice_a_wrong_key(tmp_path: Path) -> None:
    runtime = next(copy for copy in installed(tmp_path) if copy.name == "ratchet-runtime.service")
    runtime.write_text(runtime.read_text().replace("WatchdogSec", "WatchdogSek"))
    result = analyze("verify", "--man=no", str(runtime))
    assert "WatchdogSek" in result.stderr


@pytest.mark.parametrize(("name", "limit"), [("ratchet-runtime", 2.0), ("ratchet-learner", 1.9)])
def test_exposure_stays_low(name: str, limit: float, tmp_path: Path) -> None:
    unit = next(copy for copy in installed(tmp_path) if copy.name == f"{name}.service")
    result = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={round(limit * 10)}", str(unit)
    )
    if "unrecognized option" in result.stderr:
        pytest.skip("this systemd-analyze cannot judge unit files offline")
    assert result.returncode == 0, result.stdout.splitlines()[-1]
