"""One process of `ratchet bench latency`: episodes under one condition after the other, a line for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hal.bench.world import World
from policies.bundle import Bundle
from policies.fastest import open_fastest
from policies.keys import TrustStore
from policies.session import PolicySession
from runtime.chunks import Player
from runtime.control import ControlConfig
from runtime.ensemble import EnsemblePlayer
from runtime.guard import GuardLimits
from runtime.line import LineFaults
from runtime.lockstep import LockstepArm
from runtime.rollout import Rollout, RolloutRunner
from runtime.servo import ServoConfig
from tools.bench.latency_seams import NaivePlayer, jerk

BATCH = 25
_DECAY = 0.01  # ACT's


@dataclass(frozen=True, slots=True)
class Condition:
    """A client on a way to its policy: "ours", "naive" or "ensemble"; ``lost`` is a share of requests."""

    client: str
    delay_ticks: int
    lost: float
    timeout_ticks: int

    @property
    def name(self) -> str:
        return f"{self.client}-{self.delay_ticks}-{self.lost}-{self.timeout_ticks}"


@dataclass(frozen=True, slots=True)
class Work:
    """What one process does; written to a file, read by the process. ``jobs`` are conditions and seeds."""

    bundle: str
    trust: str
    backend: str
    results: str
    jobs: tuple[tuple[Condition, tuple[int, ...]], ...]


def main() -> None:
    """Entry point: ``python -m tools.bench.latency_part WORK.json``."""
    raw = json.loads(Path(sys.argv[1]).read_text())
    jobs = [(Condition(**condition), tuple(seeds)) for condition, seeds in raw["jobs"]]
    bundle = Bundle.open(Path(raw["bundle"]), TrustStore.load(Path(raw["trust"])))
    session = open_fastest(bundle, "int8" if raw["backend"] == "onnx-int8" else "fp32")
    control = ControlConfig(execute=bundle.manifest.execute)
    arms = [LockstepArm(World(), GuardLimits(), ServoConfig()) for _ in range(BATCH)]
    with Path(raw["results"]).open("a") as results:
        for condition, seeds in jobs:
            rollouts = _run(arms[: len(seeds)], session, control, condition, seeds)
            lines = [json.dumps(_row(condition, rollout, control)) + "\n" for rollout in rollouts]
            results.write("".join(lines))
            results.flush()


def _run(
    arms: Sequence[LockstepArm],
    session: PolicySession,
    control: ControlConfig,
    condition: Condition,
    seeds: tuple[int, ...],
) -> list[Rollout]:
    def naive() -> Player:
        return NaivePlayer(control.execute)

    def ensemble() -> Player:
        return EnsemblePlayer(_DECAY, blend=control.blend)

    players = {"ours": None, "naive": naive, "ensemble": ensemble}
    faults = LineFaults(condition.delay_ticks, condition.lost, condition.timeout_ticks)
    player = players[condition.client]
    runner = RolloutRunner(arms, session, control, session.manifest.monitors, faults=faults, player=player)
    return runner.run(seeds, "full")


def _row(condition: Condition, rollout: Rollout, control: ControlConfig) -> dict[str, object]:
    blend = 0 if condition.client == "naive" else control.blend
    return {
        "condition": condition.name,
        "seed": rollout.seed,
        "success": rollout.success,
        "ticks": rollout.ticks,
        "asked": rollout.asked,
        **asdict(jerk(rollout.goals, rollout.seams, blend, control.rate_hz)),
    }


if __name__ == "__main__":
    main()
