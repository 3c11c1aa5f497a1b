"""Stages 4 to 6: the policy on the live arm, its failures corrected, and the learner's round."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from episodes.store import EpisodeStore
from learner.config import LearnerConfig
from learner.promotion import Promotion
from learner.serving import PolicyServer
from learner.tracking import Tracker
from policies.bundle import reissue
from tools.demo import live
from tools.demo.plan import CALIBRATE, GATE, LIVE, SEARCH
from tools.demo.story import Demo
from tools.demo.teach import BASE_WHERE
from tools.errors import UsageError
from tools.sim import SimRobot

TAIL_EPISODES = 1  # episodes the live arm still plays after the learner has published


def crown(demo: Demo, sim: SimRobot, first: Path) -> None:
    """Register the first bundle: there is nothing to compare it with."""
    promotion = open_promotion(learner_config(demo, sim.policy_address))
    try:
        promotion.crown_first(first, "the first policy")
    finally:
        promotion.ledger.close()


def live_policy(demo: Demo, sim: SimRobot) -> None:
    """Stage 4: the served policy drives the arm at 30 Hz."""
    first = demo.plan.seeds(LIVE) + 100
    wanted = demo.plan.live_episodes
    run = demo.runner.run(live.policy(sim, first, "full", lambda run: len(run.episodes) >= wanted))
    say_run(demo, run)
    demo.figures["live_before"] = run.loop


def say_run(demo: Demo, run: live.LiveRun) -> None:
    """One line on each live episode, and one for each time the arm had to be enabled again."""
    for episode in run.episodes:
        flags = f", flags: {', '.join(episode.flags)}" if episode.flags else ""
        verdict = "done" if episode.success else "not done"
        demo.say(f"live episode {episode.id}: {verdict} after {episode.seconds:.1f} s{flags}")
    for reason in run.faults:
        demo.say(f"the arm went into fault ({reason}) and was enabled again")


def corrections(demo: Demo) -> None:
    """Stage 5: unattended rollouts are flagged by the monitors; from those, the operator corrects."""
    plan, first = demo.plan, demo.plan.seeds(SEARCH)
    unattended, corrected = demo.out / "unattended.json", demo.out / "corrected.json"
    demo.ratchet(
        "evaluate",
        demo.work / "first",
        *("--trust", demo.keys, "--seeds", f"{first}:{first + plan.unattended}", "--json", unattended),
    )
    rows = json.loads(unattended.read_text())["episodes"]
    kinds = Counter(flag for row in rows for flag in row["flags"])
    failed = [row for row in rows if not row["success"]]
    caught = sum(bool(row["flags"]) for row in failed)
    flagged = sum(bool(row["flags"]) for row in rows)
    demo.say(
        f"{len(rows)} unattended episodes, {len(failed)} failed; the monitors flagged {flagged}, "
        f"{caught} of the failures among them: "
        f"{', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items())) or 'nothing'}"
    )
    demo.say("the operator watches the flagged ones again and takes over where they go wrong")
    demo.ratchet(
        "evaluate",
        demo.work / "first",
        *("--trust", demo.keys, "--flagged", unattended, "--take-over"),
        *("--record", demo.store, "--json", corrected),
    )
    taken = [row for row in json.loads(corrected.read_text())["episodes"] if row["intervened"]]
    in_gap = sum(row["slice"] == "gap" for row in taken)
    demo.say(f"{len(taken)} take-overs recorded, {in_gap} of them where nothing had been shown")
    demo.figures["unattended"] = {
        "episodes": len(rows),
        "failed": len(failed),
        "flagged": flagged,
        "failures_flagged": caught,
        "flags": dict(kinds),
    }
    demo.figures["take_overs"] = len(taken)


def _twin(demo: Demo, sim: SimRobot, version: str) -> str:
    """The champion's weights under another signed manifest, loaded on the server beside it."""
    promotion = open_promotion(learner_config(demo, sim.policy_address))
    try:
        bundle = promotion.bundle(version)
        twin = reissue(bundle, demo.work / "twin", promotion.key, evaluation={"twin_of": version})
        assert promotion.server is not None
        return promotion.server.load(twin.path, activate=False).version
    finally:
        promotion.ledger.close()


def start_learner(demo: Demo, policy_address: str) -> subprocess.Popen[bytes]:
    """Stage 6, first half: the learner process fine-tunes, with and without the corrections.

    Returns once both are trained and the candidate's monitors are calibrated; the process goes on.
    """
    config = demo.out / "learner.toml"
    config.write_text(_toml(learner_config(demo, policy_address)))
    learner = demo.start("learn", "--config", config, "--once", "--control")
    demo.cleanup.callback(_end, learner)
    _wait_for(learner, _round(demo) / "calibrate.json")
    return learner


def _end(process: subprocess.Popen[bytes]) -> None:
    """Not to be left behind when a later stage fails or is interrupted."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def watch_round(demo: Demo, sim: SimRobot, learner: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Stage 6, second half: the arm drives while the learner judges the candidate and publishes it."""
    demo.say("the arm drives with the first policy while the candidate is judged and swapped in")
    ended = threading.Event()

    def watch() -> None:
        learner.wait()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    after: list[int] = []

    def enough(run: live.LiveRun) -> bool:
        if ended.is_set():
            after.append(len(run.episodes))
        return len(after) > TAIL_EPISODES

    run = demo.runner.run(live.policy(sim, demo.plan.seeds(LIVE) + 200, "full", enough))
    if learner.wait() != 0:
        raise UsageError("the learner failed; its message is above")
    say_run(demo, run)
    report: dict[str, Any] = json.loads((_round(demo) / "report.json").read_text())
    demo.figures["live_swap"] = run.loop
    demo.figures["live_versions"] = run.versions
    demo.figures["missed_at_publication"] = run.missed_over_swaps()
    _say_round(demo, report)
    return report


def measure_swap(demo: Demo, sim: SimRobot, report: dict[str, Any]) -> None:
    """Swap back and forth under the running arm: how long the switch takes, and what the loop noticed."""
    champion, other = report["champion_after"], report["champion_before"]
    if champion == other:
        other = _twin(demo, sim, champion)
        demo.say("the candidate was not published; the swap is timed between the champion and a twin of it")

    async def swaps() -> tuple[list[float], live.LiveRun]:
        times: list[float] = []

        async def change() -> None:
            await asyncio.sleep(6.0)
            server = PolicyServer(sim.policy_address)
            try:
                for _ in range(3):
                    for version in (other, champion):
                        reply = await asyncio.to_thread(server.swap, version)
                        times.append(reply.swap_ms)
                        await asyncio.sleep(0.7)
            finally:
                server.close()

        task = asyncio.create_task(change())
        run = await live.policy(sim, demo.plan.seeds(LIVE) + 300, "covered", lambda _: task.done())
        await task
        return times, run

    times, run = demo.runner.run(swaps())
    demo.figures["swap_ms"] = times
    demo.figures["missed_over_swaps"] = run.missed_over_swaps()
    demo.figures["live_after"] = run.loop
    demo.say(
        f"{len(times)} swaps under the moving arm: {max(times):.2f} ms at most, "
        f"{run.missed_over_swaps()} ticks missed over them "
        f"({run.loop['missed']:.0f} of {run.loop['ticks']:.0f} since the service started)"
    )


def _round(demo: Demo) -> Path:
    return demo.work / "rounds" / "0001"


def learner_config(demo: Demo, policy_address: str | None) -> LearnerConfig:
    """The learner of the demo: where everything is, and the plan's lengths."""
    plan = demo.plan
    return LearnerConfig.model_validate(
        {
            "store": demo.store,
            "work": demo.work,
            "keys": demo.keys,
            "trust": demo.keys,
            "name": "pick_place",
            "base_where": BASE_WHERE,
            "corrections_where": "interventions > 0 AND outcome = 'success' AND session = 'lockstep'",
            "policy_server": policy_address,
            "finetune": {
                "penalty": 0.1,
                "train": {
                    "steps": plan.finetune_steps,
                    "lr": plan.finetune_lr,
                    "warmup": 50,
                    "seed": plan.seed,
                    "jitter": {"shift": plan.finetune_shift},
                },
            },
            "gate": {
                "margin": plan.gate_margin,
                "effect": 0.2 if plan.promise else 0.5,
                "min_power": plan.gate_power,
                "min_pairs": 10,
            },
            "seeds": {
                "search": plan.seeds(SEARCH),
                "gate": plan.seeds(GATE),
                "audit": plan.seeds(GATE) + 100_000,
                "calibrate": plan.seeds(CALIBRATE) + 10_000,
            },
            "gate_pairs": plan.gate_pairs,
            "calibration_rollouts": max(24, plan.calibration_rollouts * 2 // 3),
            "require_calibration": plan.promise,
        }
    )


def open_promotion(config: LearnerConfig) -> Promotion:
    """Ledger, registry and (when configured) policy server, kept in step."""
    server = PolicyServer(config.policy_server) if config.policy_server else None
    return Promotion(config, server=server, tracker=Tracker(config.work / "tracking", config.name))


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    while not path.exists():
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        raise UsageError("the learner ended before its round was done; its message is above")


def _say_round(demo: Demo, report: dict[str, Any]) -> None:
    decision = report["decision"]
    demo.say(
        f"round {report['number']}: {report['corrections']} corrected episodes, "
        f"{report['base_episodes']} replayed; verdict: [bold]{report['verdict']}[/bold]"
    )
    for reason in decision["reasons"]:
        demo.say(f"  {reason}")
    kept = ("verdict", "corrections", "base_episodes", "seconds")
    demo.figures["round"] = {key: report[key] for key in kept}


def _toml(config: LearnerConfig) -> str:
    """The configuration as the file a user would write."""
    lines: list[str] = []

    def write(table: dict[str, Any], prefix: str) -> None:
        plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, dict)}
        if prefix and plain:
            lines.append(f"\n[{prefix}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in plain.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write(value, f"{prefix}.{key}" if prefix else key)

    write(config.model_dump(mode="json"), "")
    return "\n".join(lines) + "\n"


def counts(store: Path) -> dict[str, int]:
    """Episodes by kind, and how many carry a flag."""
    with EpisodeStore.open(store, create=False, mode="r") as episodes:
        rows = episodes.query("SELECT kind, count(*) AS n FROM episodes GROUP BY kind")
        flagged = episodes.query("SELECT count(*) AS n FROM episodes WHERE flags > 0")
    return {**{row["kind"]: int(row["n"]) for row in rows}, "flagged": int(flagged[0]["n"])}
