"""One process of `tools.lockstep`: reads its part from a file, runs it, writes what came of it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.bench.world import World
from hal.types import JOINTS
from policies.bundle import Bundle
from policies.config import CameraShape
from policies.fastest import open_fastest
from policies.keys import TrustStore
from policies.session import PolicySession
from runtime.control import ControlConfig
from runtime.guard import GuardLimits
from runtime.lockstep import LockstepArm
from runtime.recorder import EpisodeRecorder
from runtime.rollout import Rollout, RolloutRunner, ScriptedOperator, demonstrate
from runtime.servo import ServoConfig
from tools.errors import user_errors
from tools.lockstep import BATCH, TASK, MotorFault, Part

ROBOT = "koch"


def main() -> None:
    """Entry point: ``python -m tools.lockstep_worker PART.json``."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    raw = json.loads(Path(sys.argv[1]).read_text())
    fault = MotorFault(**raw["fault"]) if raw["fault"] else None
    part = Part(**{**raw, "seeds": tuple(raw["seeds"]), "fault": fault})
    try:
        result = _demonstrate(part) if part.kind == "demonstrate" else _rollout(part)
    except user_errors() as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(2)
    (Path(part.out) / "result.json").write_text(json.dumps(result))


def _arm() -> LockstepArm:
    return LockstepArm(World(), GuardLimits(), ServoConfig())


def _note_done(part: Part, done: int) -> None:
    (Path(part.out) / "done").write_text(str(done))


def _recorder(store: EpisodeStore, arm: LockstepArm) -> EpisodeRecorder:
    config = arm.world.config
    cameras = [CameraSpec(name=name, height=config.height, width=config.width) for name in arm.cameras]
    provenance = {"robot": "bench", "session": "lockstep", "simulated": True}
    return EpisodeRecorder(store, cameras, ControlConfig().rate_hz, provenance, lockstep=True)


def _demonstrate(part: Part) -> dict[str, Any]:
    assert part.record is not None
    rows = []
    with EpisodeStore.open(part.record, create=True, durability="group") as store:
        arm = _arm()
        if part.fault is not None:
            joint = JOINTS.index(part.fault.joint)
            arm.world.faults.friction_nm[joint] = part.fault.friction_nm
            arm.world.faults.heat_c_s[joint] = part.fault.heat_c_s
        recorder = _recorder(store, arm)
        wear = asdict(part.fault) if part.fault else None
        for seed in part.seeds:
            success = demonstrate(arm, recorder, seed, _region(part.region), TASK, ControlConfig(), wear)
            rows.append({"seed": seed, "success": success})
            _note_done(part, len(rows))
    return {"episodes": rows}


def _rollout(part: Part) -> dict[str, Any]:
    assert part.bundle is not None
    assert part.trust is not None
    bundle = Bundle.open(Path(part.bundle), TrustStore.load(Path(part.trust)))
    world = World().config
    bundle.manifest.require(
        ROBOT,
        tuple(f"{joint}.pos" for joint in JOINTS),
        tuple(CameraShape(name=c, height=world.height, width=world.width) for c in _arm().cameras),
    )
    session = _session(bundle, part.backend)
    control = ControlConfig(execute=bundle.manifest.execute)
    if part.record is None:
        arms = [_arm() for _ in range(min(BATCH, len(part.seeds)))]
        runner = RolloutRunner(
            arms, session, control, bundle.manifest.monitors, operator=_operator(part), task=TASK
        )
        results = runner.run(part.seeds, _region(part.region), lambda done: _note_done(part, done))
    else:
        with EpisodeStore.open(part.record, create=True, durability="group") as store:
            arm = _arm()
            runner = RolloutRunner(
                [arm],
                session,
                control,
                bundle.manifest.monitors,
                recorder=_recorder(store, arm),
                operator=_operator(part),
                task=TASK,
            )
            results = runner.run(part.seeds, _region(part.region), lambda done: _note_done(part, done))
    if part.signals:
        _write_signals(Path(part.out) / "signals.npz", results)
    return {
        "episodes": [_row(result) for result in results],
        "latencies_ms": _latencies_ms(session) if part.latency else [],
    }


def _latencies_ms(session: PolicySession, runs: int = 60) -> list[float]:
    """Times of single inferences, as one arm asks for them, ms."""
    arm = _arm()
    arm.reset(0, "full")
    observation = arm.observe(render=True)
    state = observation.joints.position[None].astype(np.float32)
    images = {name: frame.image[None] for name, frame in observation.frames.items()}
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        session.infer(state, images)
        times.append((time.perf_counter() - began) * 1e3)
    return times[10:]


def _operator(part: Part) -> ScriptedOperator | None:
    return ScriptedOperator() if part.take_over else None


def _session(bundle: Bundle, backend: str) -> PolicySession:
    if backend == "torch":
        from policies.torch_session import TorchSession

        return TorchSession(bundle)
    return open_fastest(bundle, "int8" if backend == "onnx-int8" else "fp32")


def _region(name: str) -> Any:
    return name


def _row(result: Rollout) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "success": result.success,
        "ticks": result.ticks,
        "slice": result.slice,
        "flags": list(result.flags),
        "episode_id": result.episode_id,
        "intervened": result.intervened,
    }


def _write_signals(path: Path, results: Sequence[Rollout]) -> None:
    arrays: dict[str, Any] = {}
    for number, result in enumerate(r for r in results if r.success):
        arrays[f"error_{number}"] = np.array(result.errors, dtype=np.float64).reshape(-1, 2)
        arrays[f"features_{number}"] = np.array([f for _, f in result.features], dtype=np.float32)
        arrays[f"ftick_{number}"] = np.array([t for t, _ in result.features], dtype=np.int64)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main()
