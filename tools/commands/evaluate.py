"""`ratchet evaluate`: judge a policy in lockstep simulation, or offline on recorded episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from tools.errors import UsageError

BACKENDS = ["onnx", "onnx-int8", "torch"]
MOST_SEEDS = 100_000
ROLLOUTS_ONLY = (
    "against",
    "seeds",
    "flagged",
    "region",
    "take_over",
    "record",
    "signals",
    "backend",
    "workers",
)
EXAMPLES = """
\b
Examples:
  ratchet evaluate out/bundle --seeds 0:100
  ratchet evaluate candidate --against champion --seeds 200000:200100 --json result.json
  ratchet evaluate bundle --seeds 0:200 --json seen.json
  ratchet evaluate bundle --flagged seen.json --take-over --record episodes
  ratchet evaluate bundle --offline --store episodes --where "split = 'test'"
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="A second bundle, on the same seeds.")
@click.option("--seeds", default="0:50", show_default=True, help="FIRST:LAST, the last one left out.")
@click.option("--flagged", type=click.Path(path_type=Path), help="Only seeds this earlier result flagged.")
@click.option("--region", type=click.Choice(["full", "covered", "gap"]), default="full", show_default=True)
@click.option("--take-over", is_flag=True, help="A scripted operator takes over failing episodes.")
@click.option("--record", type=click.Path(path_type=Path), help="Record the episodes into this store.")
@click.option("--signals", type=click.Path(path_type=Path), help="Keep the monitors' signals (npz).")
@click.option("--backend", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True)
@click.option("--trust", type=click.Path(path_type=Path), help="Directory of trusted public keys.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result there.")
@click.option("--offline", is_flag=True, help="Compare predicted with recorded actions instead.")
@click.option("--store", type=click.Path(path_type=Path), help="With --offline: the episode store.")
@click.option("--where", default="true", show_default=True, help="With --offline: SQL over the catalogue.")
def evaluate(
    bundle: Path,
    against: Path | None,
    seeds: str,
    flagged: Path | None,
    region: str,
    take_over: bool,
    record: Path | None,
    signals: Path | None,
    backend: str,
    trust: Path | None,
    workers: int,
    json_file: Path | None,
    offline: bool,
    store: Path | None,
    where: str,
) -> None:
    """Judge BUNDLE: rollouts on the simulated bench through the real control path, guard included."""
    from tools.paths import trust_dir

    keys = trust_dir(trust)
    if offline:
        from tools.offline import offline_command

        _refuse(ROLLOUTS_ONLY, "has no meaning with --offline, which predicts recorded episodes")
        if store is None:
            raise UsageError("--offline needs --store DIR with the episodes to predict")
        offline_command(bundle, store, where, keys, json_file)
        return
    _refuse(("store", "where"), "has no meaning without --offline")
    _require_place(json_file, "--json")
    _require_place(signals, "--signals")
    if record is not None and record.exists() and not record.is_dir():
        raise UsageError(f"--record {record}: a file is in the way of the store; give another path")
    if take_over and record is None:
        raise UsageError("--take-over makes corrections to keep; say where with --record STORE")
    chosen = _seeds(seeds) if flagged is None else _flagged(flagged)
    result = _judge(bundle, keys, chosen, region, workers, backend, record, take_over, signals)
    if against is not None:
        other = _judge(against, keys, chosen, region, workers, backend, None, False, None)
        result["against"] = other["episodes"]
        result["against_bundle"] = other["bundle"]
        result["against_success_rate"] = other["success_rate"]
    if json_file is not None:
        json_file.write_text(json.dumps(result))
    _print(result)


def _refuse(options: tuple[str, ...], why: str) -> None:
    """Options that were given and would be ignored. Raises UsageError."""
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in options
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{', '.join(given)} {why}; leave it out")


def _judge(
    bundle: Path,
    trust: Path,
    seeds: list[int],
    region: str,
    workers: int,
    backend: str,
    record: Path | None,
    take_over: bool,
    signals: Path | None,
) -> dict[str, Any]:
    """Rollouts of one bundle as the learner reads them."""
    from learner.intervals import wilson
    from policies.bundle import Bundle
    from policies.keys import TrustStore
    from tools.lockstep import rollouts
    from tools.progress import bar

    version = Bundle.open(bundle, TrustStore.load(trust)).version
    with bar(f"rollouts of {version}", len(seeds)) as update:
        outcome = rollouts(
            bundle,
            trust,
            seeds,
            region,
            workers,
            backend=backend,
            record=record,
            take_over=take_over,
            signals=signals,
            progress=lambda done, _: update(done),
        )
    episodes, latencies = outcome.episodes, outcome.latencies_ms
    won = sum(bool(row["success"]) for row in episodes)
    return {
        "bundle": version,
        "region": region,
        "episodes": episodes,
        "against": None,
        "success_rate": won / len(episodes),
        "interval": list(wilson(won, len(episodes))),
        "latency_ms_p99": float(np.percentile(latencies, 99)) if latencies else None,
    }


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition(":")
    try:
        start, stop = int(first), int(last)
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not FIRST:LAST, such as 0:100") from None
    if not 0 <= start < stop or stop - start > MOST_SEEDS:
        raise UsageError(
            f"--seeds {text!r} names no seed, or more than {MOST_SEEDS}; use FIRST:LAST, such as 0:100"
        )
    return list(range(start, stop))


def _require_place(path: Path | None, option: str) -> None:
    """An output's folder must exist before the rollouts are run, not after."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: its folder does not exist; make it first")


def _flagged(path: Path) -> list[int]:
    """Seeds of an earlier result whose episodes carry a flag."""
    try:
        rows = json.loads(path.read_text())["episodes"]
        seeds = sorted(int(row["seed"]) for row in rows if row["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no result of `ratchet evaluate --json` ({error})") from None
    if not seeds:
        raise UsageError(f"no episode of {path} was flagged; there is nothing to correct")
    return seeds


def _print(result: dict[str, Any]) -> None:
    low, high = result["interval"]
    n = len(result["episodes"])
    click.echo(f"{result['bundle']}: success {result['success_rate']:.1%} [{low:.1%}, {high:.1%}] of {n}")
    for name in ("covered", "gap"):
        rows = [row for row in result["episodes"] if row["slice"] == name]
        if rows:
            click.echo(f"  {name}: {sum(row['success'] for row in rows)}/{len(rows)}")
    if result["against"] is not None:
        wins = sum(a["success"] and not b["success"] for a, b in _pairs(result))
        losses = sum(b["success"] and not a["success"] for a, b in _pairs(result))
        rate = result["against_success_rate"]
        click.echo(f"{result['against_bundle']}: success {rate:.1%}; pairs won {wins}, lost {losses}")


def _pairs(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(result["episodes"], result["against"], strict=True))
