"""What the tests of several folders share."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from tests.standstill import ATTEMPTS, WORST_S, Standstill

if TYPE_CHECKING:  # torch is loaded by the tests that need it
    from tests.tiny_policy import Policies


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """Two signed bundles of one untrained policy."""
    from tests.tiny_policy import export_policies

    return export_policies(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def short_dir() -> Iterator[Path]:
    """A directory with a short name: a unix socket's path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ratchet-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


_WATCH = pytest.StashKey[Standstill]()


def pytest_configure(config: pytest.Config) -> None:
    """Watch the machine, unless this run gives way to others at idle priority."""
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        folder = Path(tempfile.mkdtemp(prefix="ratchet-standstill-"))
        config.stash[_WATCH] = Standstill(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the watching."""
    watch = config.stash.get(_WATCH, None)
    if watch is not None:
        watch.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Repeat a test that failed while the machine itself stood still."""
    watch = item.config.stash.get(_WATCH, None)
    if watch is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(ATTEMPTS):
        began = time.monotonic()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        stood = watch.worst_since(began) if any(report.failed for report in reports) else 0.0
        if stood < WORST_S or attempt == ATTEMPTS - 1:
            break
        watch.repeated.append(f"{item.nodeid}: the machine stood still for {stood * 1e3:.0f} ms")
        _forget_failed_fixtures(item)
        watch.wait_for_quiet()
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which tests were repeated."""
    watch = config.stash.get(_WATCH, None)
    for line in watch.repeated if watch is not None else []:
        terminalreporter.write_line(f"repeated: {line}")


def _forget_failed_fixtures(item: pytest.Item) -> None:
    """A fixture of a wider scope that failed would only raise the same error again."""
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info is not None else []:
        for definition in definitions:
            if definition.cached_result is not None and definition.cached_result[2] is not None:
                definition.cached_result = None
