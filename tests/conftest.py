"""What the tests of several folders share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from episodes.urgency import urgency

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


@pytest.fixture(autouse=True)
def _no_more_urgent_than_before() -> Iterator[None]:
    """What takes real-time priority gives it back: everything that is punctual would wait for the tests."""
    before = urgency()
    yield
    now = urgency()
    os.sched_setscheduler(0, before[0], os.sched_param(before[1]))
    assert now == before, "the test left the scheduler's policy or priority changed"
