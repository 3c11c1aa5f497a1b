"""The peer's interpreter is named on the command line."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--lerobot PYTHON``."""
    parser.addoption("--lerobot", help="interpreter of a virtual environment that has lerobot")
