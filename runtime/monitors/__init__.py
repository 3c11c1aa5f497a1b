"""Monitors: what notices that an episode goes wrong. `MonitorBank` runs them all."""

from runtime.monitors.bank import ChunkSignal, MonitorBank
from runtime.monitors.config import MonitorConfig
from runtime.monitors.row import Monitor, MonitorRow

__all__ = ["ChunkSignal", "Monitor", "MonitorBank", "MonitorConfig", "MonitorRow"]
