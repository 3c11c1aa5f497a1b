"""Stage 8: the audit on fresh seeds, the table, the JSON and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from episodes.reader import Episode
from episodes.store import EpisodeStore
from hal.types import JOINTS
from learner.intervals import paired_difference, wilson
from tools.demo.improve import counts
from tools.demo.plan import AUDIT
from tools.demo.story import Demo, percent
from tools.lockstep import Outcome, rollouts
from tools.progress import bar

ARMS = ("before", "control", "after")


def audit(demo: Demo) -> None:
    """Every policy on the same fresh seeds over the whole table; these seeds decide nothing."""
    plan = demo.plan
    first = plan.seeds(AUDIT)
    seeds = list(range(first, first + plan.audit_pairs))
    bundles = {
        "before": demo.work / "first",
        "control": demo.work / "rounds" / "0001" / "control",
        "after": _candidate(demo),
    }
    results: dict[str, list[dict[str, Any]]] = {}
    latencies: dict[str, list[float]] = {}
    for arm in ARMS:
        outcome = _rollouts(demo, arm, bundles[arm], seeds)
        results[arm], latencies[arm] = outcome.episodes, outcome.latencies_ms
    success = {arm: [bool(row["success"]) for row in rows] for arm, rows in results.items()}
    demo.figures["audit"] = {
        "pairs": len(seeds),
        **{arm: _rate(rows, success[arm]) for arm, rows in results.items()},
        "after_minus_before": _difference(success["after"], success["before"]),
        "after_minus_control": _difference(success["after"], success["control"]),
        "promoted": demo.figures["round"]["verdict"] == "promote",
    }
    demo.figures["inference_ms"] = _quantiles(latencies["after"])


def _rollouts(demo: Demo, arm: str, bundle: Path, seeds: list[int]) -> Outcome:
    with bar(f"audit: {arm}", len(seeds)) as update:
        return rollouts(
            bundle, demo.keys, seeds, "full", demo.plan.workers, progress=lambda done, _: update(done)
        )


def _candidate(demo: Demo) -> Path:
    """The round's candidate; it is also the champion where the gate let it through."""
    folder = demo.work / "rounds" / "0001"
    return folder / "candidate" if (folder / "candidate").exists() else folder / "raw"


def _rate(rows: list[dict[str, Any]], success: list[bool]) -> dict[str, Any]:
    slices = {
        name: [sum(r["success"] for r in rows if r["slice"] == name), sum(r["slice"] == name for r in rows)]
        for name in ("covered", "gap")
    }
    rate = sum(success) / len(success)
    return {"rate": rate, "interval": list(wilson(sum(success), len(success))), "slices": slices}


def _difference(first: list[bool], second: list[bool]) -> dict[str, Any]:
    value, interval = paired_difference(first, second)
    won = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    return {"value": value, "interval": list(interval), "won": won, "lost": lost}


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 99)} if values else {}


def promises(demo: Demo) -> dict[str, bool]:
    """What the full demo promises, and whether it held."""
    figures = demo.figures["audit"]
    return {
        "success after is at least 90 %": figures["after"]["rate"] >= 0.90,
        "after is above before, the paired difference's 95 % interval excludes 0": (
            figures["after_minus_before"]["interval"][0] > 0.0
        ),
        "after is above the control arm": figures["after_minus_control"]["value"] > 0.0,
        "the gate published the candidate": bool(figures["promoted"]),
        "a worse candidate was refused": demo.figures["worse"]["verdict"] != "promote",
        "the loop missed no tick over the swaps": (
            demo.figures["missed_at_publication"] + demo.figures["missed_over_swaps"] == 0
        ),
        "the worn motor was flagged in every episode, with at most one false flag": _health_holds(
            demo.figures["health"]
        ),
    }


def _health_holds(health: dict[str, Any]) -> bool:
    """The worn motor in every episode; false flags in at most one of all the motors' other judgements.

    A single false flag is within what the model's own error rate allows over these episodes.
    """
    worn = health["worn"]["flagged"].get(health["joint"], 0)
    return worn == health["episodes"] and false_flags(health) <= 1


def false_flags(health: dict[str, Any]) -> int:
    """Flags on motors that nothing was done to."""
    flags = sum(health["healthy"]["flagged"].values()) + sum(health["worn"]["flagged"].values())
    return int(flags - health["worn"]["flagged"].get(health["joint"], 0))


def table(demo: Demo) -> Table:
    """The figures a person looks for."""
    figures, view = demo.figures, Table(show_header=False, box=None, padding=(0, 2))
    rows = [*_success_rows(figures["audit"]), *_time_rows(figures), _health_row(figures["health"])]
    for row in (*rows, _episodes_row(demo)):
        view.add_row(*row)
    return view


Row = tuple[str, str, str]


def _success_rows(judged: dict[str, Any]) -> list[Row]:
    rows = []
    for arm, name in (("before", "success before"), ("control", "control arm"), ("after", "success after")):
        slices = ", ".join(f"{k} {won}/{n}" for k, (won, n) in judged[arm]["slices"].items())
        rate = percent(judged[arm]["rate"], judged[arm]["interval"])
        rows.append((name, rate, f"of {judged['pairs']}; {slices}"))
    for key, name in (("after_minus_before", "after − before"), ("after_minus_control", "after − control")):
        change = judged[key]
        rate = percent(change["value"], change["interval"])
        rows.append((name, rate, f"pairs won {change['won']}, lost {change['lost']}"))
    return rows


def _time_rows(figures: dict[str, Any]) -> list[Row]:
    loop = figures.get("live_after") or figures["live_swap"]
    bare, swaps = figures["inference_ms"], figures.get("swap_ms", [])
    period = f"{loop['period_ms_p50']:.2f} ms median, {loop['period_ms_p99']:.2f} p99"
    return [
        ("loop period", f"{period}, {loop['period_ms_max']:.2f} max", _missed(loop)),
        (
            "inference",
            f"{loop['inference_ms_p50']:.1f} ms median, {loop['inference_ms_p99']:.1f} p99",
            f"from observation to chunk, in whole ticks; bare {bare['p50']:.1f}, p99 {bare['p99']:.1f}",
        ),
        ("swap", f"{max(swaps):.2f} ms at most" if swaps else "none", f"{len(swaps)} under the moving arm"),
    ]


def _health_row(health: dict[str, Any]) -> Row:
    joint, n = health["joint"], health["episodes"]
    found = f"{joint} flagged in {health['worn']['flagged'].get(joint, 0)} of {n} worn episodes"
    return ("motor health", found, f"{false_flags(health)} false flags in {2 * n} episodes of 6 motors")


def _missed(loop: dict[str, float]) -> str:
    return f"{loop['missed']:.0f} of {loop['ticks']:.0f} ticks missed"


def _episodes_row(demo: Demo) -> Row:
    kinds = counts(demo.store)
    demo.figures["episodes"] = dict(kinds)
    flagged = kinds.pop("flagged")
    return ("episodes", ", ".join(f"{n} {kind}" for kind, n in kinds.items()), f"{flagged} with flags")


def write_json(demo: Demo, path: Path) -> None:
    """Everything the table shows, and more."""
    document = {
        "plan": demo.plan.model_dump(),
        "figures": demo.figures,
        "promises": promises(demo),
        "seconds": {**demo.seconds, "total": sum(demo.seconds.values())},
    }
    path.write_text(json.dumps(document, indent=1))


def picture(demo: Demo, path: Path) -> None:
    """Success by generation, and one corrected episode's joints with its flags and take-over."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), width_ratios=(1, 2))
    judged = demo.figures["audit"]
    for x, arm in enumerate(ARMS):
        low, high = judged[arm]["interval"]
        rate = judged[arm]["rate"]
        left.bar(x, rate, color=("#9aa5b1", "#c9b37e", "#4c9f70")[x])
        left.errorbar(x, rate, yerr=[[rate - low], [high - rate]], color="black", capsize=5)
        left.text(x, 0.03, f"{rate:.1%}", ha="center")
    left.set_xticks(range(3), ["first policy", "control arm:\nsame, no corrections", "with corrections"])
    left.set_ylim(0, 1)
    left.set_title(f"Success over the whole table, {judged['pairs']} fresh paired seeds")
    with EpisodeStore.open(demo.store, create=False, mode="r") as store:
        corrected = "SELECT id FROM episodes WHERE interventions > 0 ORDER BY flags DESC, id LIMIT 1"
        for row in store.query(corrected):  # the one with most to see
            _traces(right, store.read(row["id"]))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _traces(axes: Any, episode: Episode) -> None:
    state = episode.streams["observation.state"]
    start = int(state.t_ns[0])
    seconds = (state.t_ns - start) / 1e9
    for joint, values in zip(JOINTS, state.values.T, strict=True):
        axes.plot(seconds, values, label=joint, linewidth=1.2)
    for flag in episode.flags:
        axes.axvspan(
            (flag.start_ns - start) / 1e9, (flag.end_ns - start) / 1e9 + 0.05, color="red", alpha=0.15
        )
        axes.text(
            (flag.start_ns - start) / 1e9, axes.get_ylim()[1], flag.kind, color="red", fontsize=8, rotation=45
        )
    for span in episode.interventions:
        axes.axvspan((span.start_ns - start) / 1e9, (span.end_ns - start) / 1e9, color="blue", alpha=0.08)
    axes.set_xlabel("s (red: flags, blue: take-over)")
    axes.set_ylabel("rad")
    axes.set_title(f"Joints of episode {episode.id}", pad=28)
    axes.legend(fontsize=7, loc="lower left", ncols=2)
