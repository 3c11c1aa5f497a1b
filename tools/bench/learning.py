"""`ratchet bench learning`: which image backbone learns the demo's task better, from the same demonstrations.

Every network is trained by `ratchet train` with the demo's recipe (same episodes, steps, batch, seed) and
judged by `ratchet evaluate` on the same fresh seeds, in the part of the table that was demonstrated. What
is finished lies in --out and is not done again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tools.bench.common import quantile, show
from tools.console import say
from tools.demo.plan import NETWORK, full
from tools.demo.story import percent, ratchet_command
from tools.demo.teach import BASE_WHERE
from tools.errors import UsageError
from tools.options import PATH, json_flag

if TYPE_CHECKING:  # torch takes a second
    from learner.train import Trainer

REGION = "covered"
FRESH = 7
"""The kind of seeds (see ``tools.demo.plan``) no part of the demo uses."""
_LITE0 = {"backbone": "efficientnet_lite0"}
_SHARED = {key: value for key, value in NETWORK.items() if not key.startswith("backbone")}
NETWORKS: dict[str, dict[str, bool | int | float | str]] = {
    "resnet_small": NETWORK,
    "efficientnet_lite0": {**_SHARED, **_LITE0},
    "efficientnet_lite0_imagenet": {**_SHARED, **_LITE0, "pretrained": "imagenet"},
}
"""What is compared: the demo's own network, and Lite0 in its place without and with ImageNet's weights."""
BASELINE = "resnet_small"
_TIMED_EPISODES = 8
_TIMED_STEPS = 7


@click.command(
    epilog="\b\nExample:\n  ratchet bench learning --store out/demo/episodes --out out/learning --json"
)
@click.option("--store", type=PATH, help="The demo's episodes [default: demonstrations made for this].")
@click.option(
    "--out", type=PATH, default=Path("out/learning"), show_default=True, help="Kept; continued from."
)
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(0, 1000), default=0, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Fresh ones, each."
)
@click.option(
    "--threads", type=click.IntRange(0, 64), default=0, show_default=True, help="0: the learner's own."
)
@click.option(
    "--only", type=click.Choice(list(NETWORKS)), multiple=True, help="Not all networks. Repeatable."
)
@json_flag
def command(
    store: Path | None,
    out: Path,
    steps: int,
    batch: int,
    seed: int,
    seeds: int,
    threads: int,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the demo's policy over each backbone and judge all on the same seeds.

    Takes about twenty minutes on two cores. Ctrl-C keeps what is done; the same command goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"lr": full(seed).train_lr, "batch": batch, "seed": seed, "threads": threads}
    chosen = {"steps": steps, **recipe, "seeds": seeds, "store": str(store.absolute()) if store else None}
    _same_as_before(out / "plan.json", chosen)
    episodes = store or _demonstrations(out / "episodes", seed)
    first = full(seed).seeds(FRESH)
    rows: dict[str, Any] = {}
    results: dict[str, list[bool]] = {}
    for name in only or NETWORKS:
        reason = _missing(NETWORKS[name])
        if reason is not None:
            rows[name] = {"left_out": reason}
            continue
        _train(name, episodes, out, steps, {**NETWORKS[name], **recipe})
        judged = _judge(out, name, first, seeds)
        results[name] = [bool(row["success"]) for row in judged["episodes"]]
        rows[name] = {
            "success_rate": judged["success_rate"],
            "interval": judged["interval"],
            **_about(out / name, out / "keys"),
        }
    for name, ms in _step_times(
        episodes, out, {name: {**NETWORKS[name], **recipe} for name in results}
    ).items():
        rows[name]["steps_per_s"] = round(1000.0 / ms, 3)
    for name in results:
        if name != BASELINE and BASELINE in results:
            rows[name]["against_resnet_small"] = _paired(results[name], results[BASELINE])
    seeds_used = f"{first}:{first + seeds}"
    show({**chosen, "region": REGION, "rollout_seeds": seeds_used, "networks": rows}, as_json)


def _same_as_before(path: Path, chosen: Mapping[str, Any]) -> None:
    """What lies beside ``path`` was made with the same settings. Raises UsageError when not."""
    if not path.exists():
        path.write_text(json.dumps(chosen))
    elif json.loads(path.read_text()) != chosen:
        raise UsageError(f"{path.parent} holds results of other settings ({path}); give another --out")


def _demonstrations(store: Path, seed: int) -> Path:
    from tools.demo.plan import DEMONSTRATE
    from tools.lockstep import demonstrate

    done = store.with_suffix(".done")
    if not done.exists():
        if store.exists():
            raise UsageError(f"{store} was left unfinished; delete it and start again")
        plan = full(seed)
        say(f"recording {plan.demonstrations} demonstrations")
        first = plan.seeds(DEMONSTRATE)
        demonstrate(store, list(range(first, first + plan.demonstrations)), REGION, plan.workers)
        done.touch()
    return store


def _missing(network: Mapping[str, Any]) -> str | None:
    """Why a network cannot be trained here, if it cannot."""
    from policies.config import ACTConfig, act_small
    from policies.errors import PretrainedError
    from policies.pretrained import find_weights

    if "pretrained" not in network:
        return None
    config = {**act_small().model_dump(), "backbone": network["backbone"]}
    config |= {"backbone_width": 64, "backbone_blocks": 2}
    try:
        find_weights(ACTConfig.model_validate(config), "imagenet")
    except PretrainedError as error:
        return str(error)
    return None


def _train(name: str, store: Path, out: Path, steps: int, settings: Mapping[str, Any]) -> None:
    """`ratchet train`, continued where it was interrupted; the bundle appears when it is complete."""
    bundle = out / name
    if not bundle.exists():
        fixed = ["--out", bundle, "--keys", out / "keys", "--no-register", "--json"]
        begun = ["--store", store, "--where", BASE_WHERE, "--steps", steps]
        begun += [f"--set={key}={value}" for key, value in settings.items()]
        unfinished = (out / f"{name}.training" / "run.json").exists()
        _ratchet("train", *fixed, *(["--resume"] if unfinished else begun))


def _about(bundle: Path, keys: Path) -> dict[str, Any]:
    """Version and int8 error (standard deviations) of a bundle. Raises BundleError when it is damaged."""
    from policies.bundle import Bundle
    from policies.keys import TrustStore

    opened = Bundle.open(bundle, TrustStore.load(keys))
    return {"bundle": opened.version, "int8_error": opened.manifest.parity.int8_error}


def _judge(out: Path, name: str, first: int, seeds: int) -> dict[str, Any]:
    result = out / f"{name}.rollouts.json"
    if not result.exists():
        part = result.with_suffix(".part")
        chosen = f"{first}:{first + seeds}"
        _ratchet(
            "evaluate",
            out / name,
            "--trust",
            out / "keys",
            "--seeds",
            chosen,
            "--region",
            REGION,
            "--json",
            part,
        )
        part.replace(result)
    judged = dict(json.loads(result.read_text()))
    say(f"{name}: success {percent(judged['success_rate'], judged['interval'])} of {seeds}")
    return judged


def _step_times(store: Path, out: Path, networks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median milliseconds of one training step of each network, measured in turn on the first episodes."""
    kept = out / "step_times.json"
    found = dict(json.loads(kept.read_text())) if kept.exists() else {}
    if set(found) != set(networks):
        import torch

        from episodes.store import EpisodeStore
        from learner.loading import load_dataset
        from tools.bench.train import in_turn
        from tools.bench.train_data import trainer
        from tools.settings import train_config

        say("timing one step of each, in turn")
        configs = {name: train_config({}, [f"{k}={v}" for k, v in n.items()]) for name, n in networks.items()}
        with EpisodeStore.open(store, create=False, mode="r") as opened:
            chosen = sorted(opened.select(BASE_WHERE))[:_TIMED_EPISODES]
            data = load_dataset(opened, chosen, next(iter(configs.values())).data)
        threads = next(iter(configs.values())).threads
        if threads:
            torch.set_num_threads(threads)
        runs = {name: trainer(data, config) for name, config in configs.items()}
        with ExitStack() as held:
            for run in runs.values():
                held.enter_context(run.loader)
            calls: dict[str, Callable[[], object]] = {
                name: partial(_next_step, count(), run) for name, run in runs.items()
            }
            times = in_turn(calls, _TIMED_STEPS)
        found = {name: quantile(values, 50) for name, values in times.items()}
        kept.write_text(json.dumps(found))
    return {name: float(found[name]) for name in networks}


def _next_step(numbers: Iterator[int], run: Trainer) -> None:
    run.step(next(numbers))


def _paired(ours: list[bool], baseline: list[bool]) -> dict[str, Any]:
    from learner.intervals import paired_difference

    difference, interval = paired_difference(ours, baseline)
    pairs = list(zip(ours, baseline, strict=True))
    return {
        "difference": difference,
        "interval": list(interval),
        "won": sum(a and not b for a, b in pairs),
        "lost": sum(b and not a for a, b in pairs),
    }


def _ratchet(*arguments: object) -> str:
    """Run a command; its stdout. Raises UsageError when it fails (it has said why itself)."""
    command = [str(argument) for argument in arguments]
    process = subprocess.Popen(
        ratchet_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        printed, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()  # it heard Ctrl-C as well, and keeps a checkpoint first
        raise
    if process.returncode != 0:
        raise UsageError(f"ratchet {command[0]} ended with status {process.returncode}; its message is above")
    return printed
