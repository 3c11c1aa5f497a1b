"""Two versions of one untrained policy, for tests: those that the fault table is run with."""

from __future__ import annotations

from tools.faults.tiny_policy import SIZE, TINY, Policies, export_policies

__all__ = ["SIZE", "TINY", "Policies", "export_policies"]
