"""Stages 1 to 3: the bench, the demonstrations, the first policy."""

from __future__ import annotations

import json
from pathlib import Path

from episodes.absorb import absorb
from episodes.store import EpisodeStore
from learner.calibrate import calibrate, read_signals
from learner.errors import CalibrationError
from policies.bundle import Bundle, reissue
from policies.keys import TrustStore, ensure_key
from tools.demo import live
from tools.demo.plan import CALIBRATE, DEMONSTRATE, LIVE, NETWORK
from tools.demo.story import Demo, percent
from tools.lockstep import demonstrate
from tools.progress import bar
from tools.sim import SimSettings, start_sim

BASE_WHERE = "kind = 'demo' AND outcome = 'success' AND session = 'lockstep'"


def live_demonstrations(demo: Demo) -> None:
    """Stage 1: bench up; the demonstrator moves the leader in real time, the service records."""
    with start_sim(demo.robot("teach"), SimSettings(seed=demo.plan.seed)) as sim:
        info = sim.bench.info()
        demo.say(
            f"bench: follower {info.follower_port}, leader {info.leader_port} "
            f"(Dynamixel 2.0, {info.baud} baud), cameras {', '.join(info.cameras)}"
        )
        first = demo.plan.seeds(LIVE)
        seeds = list(range(first, first + demo.plan.live_demonstrations))
        run = demo.runner.run(live.demonstrations(sim, seeds, "covered"))
    for episode in run.episodes:
        demo.say(
            f"live demonstration {episode.id}: {'done' if episode.success else 'failed'} "
            f"in {episode.seconds:.1f} s, ready for the next in {episode.end_ms:.0f} ms"
        )
    live.require_success(run, "the demonstrations")
    demo.figures["teleop_loop"] = run.loop
    with EpisodeStore.open(demo.store, create=True) as store:
        absorb(store, sim.store_path)


def lockstep_demonstrations(demo: Demo) -> None:
    """Stage 2: the rest of the demonstrations, faster than real time, through the same recorder."""
    plan = demo.plan
    demo.say("the operator is in a hurry: 40 % of the table, the side far from the zone, is never shown")
    first = plan.seeds(DEMONSTRATE)
    with bar("demonstrations", plan.demonstrations, "episodes") as update:
        done = demonstrate(
            demo.store,
            list(range(first, first + plan.demonstrations)),
            "covered",
            plan.workers,
            lambda count, _: update(count),
        )
    demo.say(f"{done} of {plan.demonstrations} demonstrations fulfilled the task and are in the store")
    demo.figures["demonstrations"] = done


def first_policy(demo: Demo) -> Path:
    """Stage 3: train an ACT policy, export it in every form, sign it, calibrate its monitors."""
    plan, raw = demo.plan, demo.work / "first-raw"
    settings = [f"--set={key}={value}" for key, value in {**NETWORK, "lr": plan.train_lr}.items()]
    demo.work.mkdir(parents=True, exist_ok=True)
    demo.ratchet(
        "train",
        *("--store", demo.store, "--where", BASE_WHERE, "--out", raw, "--steps", plan.train_steps),
        *("--registry", demo.work, "--name", "pick_place", "--keys", demo.keys, "--trust", demo.keys),
        *("--set", f"seed={plan.seed}", "--no-register", *settings),
    )
    signals, first = demo.out / "signals.npz", plan.seeds(CALIBRATE)
    result = demo.out / "calibration.json"
    demo.ratchet(
        "evaluate",
        raw,
        *("--trust", demo.keys, "--seeds", f"{first}:{first + plan.calibration_rollouts}"),
        *("--signals", signals, "--json", result),
    )
    evaluation = json.loads(result.read_text())
    try:
        monitors = calibrate(read_signals(signals))
    except CalibrationError as error:
        demo.say(f"monitors stay uncalibrated: {error}")
        monitors = None
    bundle = Bundle.open(raw, TrustStore.load(demo.keys))
    bundle = reissue(
        bundle,
        demo.work / "first",
        ensure_key(demo.keys),
        monitors=monitors,
        evaluation={"success_rate": evaluation["success_rate"], "rollouts": plan.calibration_rollouts},
    )
    parity = bundle.manifest.parity
    demo.say(
        f"bundle {bundle.version}: safetensors, ONNX fp32 (differs by {parity.fp32_error:.1e} σ) and int8 "
        f"({parity.int8_error:.3f} σ), signed; success over the whole table in passing: "
        f"{percent(evaluation['success_rate'], evaluation['interval'])}"
    )
    demo.figures["first_version"] = bundle.version
    return bundle.path
