"""A fleet agent over the in-memory robot as a process of its own, for tests that kill it.

Run as ``python fleet_robot.py CONFIG.json EFFECTS [HANG]``: every effect is appended to EFFECTS.
With HANG = "before" the process stands still between journal and execution; with "during" while
the operation runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from runtime.fleet.agent import FleetAgent
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command
from runtime.fleet.operations import Operation
from runtime.remote.facade import EpisodeResult
from tests.runtime.memory_facade import MemoryFacade


class EffectFacade(MemoryFacade):
    """Writes each started episode to a file, at once and for good."""

    def __init__(self, effects: Path, hang: str) -> None:
        super().__init__()
        self.mode = "ready"
        self._effects = effects
        self._hang = hang

    def effect(self, line: str) -> None:
        with self._effects.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    async def start_episode(self, task: str) -> EpisodeResult:
        self.effect(task)
        if self._hang == "during":
            await asyncio.Event().wait()
        return EpisodeResult(f"ep-{task}")


async def main() -> None:
    config = FleetConfig.model_validate_json(Path(sys.argv[1]).read_text())  # noqa: ASYNC240
    hang = sys.argv[3] if len(sys.argv) > 3 else ""
    facade = EffectFacade(Path(sys.argv[2]), hang)
    agent = FleetAgent(config, "lab", "koch", facade)
    if hang == "before":

        def stand_still(command: Command, operation: Operation) -> None:
            facade.effect("journalled")

        agent._executor.submit = stand_still  # type: ignore[method-assign]
    await agent.run()


if __name__ == "__main__":
    asyncio.run(main())
