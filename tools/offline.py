"""`ratchet evaluate --offline`: predicted against recorded actions, beside two baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from pydantic import ValidationError

from episodes.store import EpisodeStore
from learner.checkpoint import write_atomic
from learner.config import DataConfig
from learner.data import Dataset
from learner.described import describe
from learner.loading import load_dataset
from learner.offline import Errors, OfflineReport, evaluate_offline
from policies.bundle import Bundle
from policies.keys import TrustStore
from policies.manifest import Manifest
from policies.session import OnnxSession
from tools.console import disk_errors, say, show_table
from tools.errors import UsageError
from tools.progress import bar

TRAINED_ON = "episode_digests"
"""Key of a manifest's training section: digests of the episodes the policy was trained on."""
DIGEST_CHARACTERS = 16
_SHOWN_STEPS = (1, 2, 4, 8, 16, 32, 64)


def offline_command(bundle: Path, store: Path, where: str, trust: Path, json_file: Path | None) -> None:
    """Predict every step of the selected episodes and print how far off whole chunks are.

    Raises UsageError when the episodes are of another robot; else as opening bundle and store does.
    """
    opened = Bundle.open(bundle, TrustStore.load(trust))
    manifest = opened.manifest
    with EpisodeStore.open(store, create=False, mode="r") as episodes:
        chosen = episodes.select(where)
        described = describe(episodes, chosen)
        for what in ("state_names", "action_names"):
            if getattr(described, what) != getattr(manifest, what):
                raise UsageError(
                    f"the episodes have {what} {list(getattr(described, what))}, the bundle "
                    f"{list(getattr(manifest, what))}; select episodes of its robot with --where"
                )
        seen = _trained_on(manifest, [episodes.read(name).digest for name in chosen])
        held_out = load_dataset(episodes, chosen, data_config(manifest))
    report = _evaluate(opened, held_out)
    result = {
        "bundle": opened.version,
        "where": where,
        "trained_on": seen,
        "unit": manifest.action_convention.unit,
        **report.to_json(),
    }
    if json_file is not None:
        with disk_errors(json_file.parent):
            write_atomic(json_file, json.dumps(result, indent=1).encode())
    _show(opened, report, manifest)
    if seen:
        say(f"warning: {seen} of {report.episodes} episodes were trained on: this is no held-out result")


def data_config(manifest: Manifest) -> DataConfig:
    """How the bundle's own training read episodes, with its cameras, and gaps split instead of refused.

    Cameras of different sizes are not resized: the episodes must then have those sizes.
    """
    sizes = {(c.height, c.width) for c in manifest.cameras}
    training = manifest.training.get("config")
    raw = training.get("data") if isinstance(training, dict) else None
    try:
        base = DataConfig.model_validate(raw or {})
    except ValidationError:  # written by another release: the defaults then
        base = DataConfig()
    return base.model_copy(
        update={
            "cameras": tuple(c.name for c in manifest.cameras),
            "image_size": sizes.pop() if len(sizes) == 1 else None,
            "gaps": "split",
            "scratch": None,
        }
    )


def _evaluate(bundle: Bundle, held_out: Dataset) -> OfflineReport:
    session = OnnxSession(bundle)
    with bar("predicting", len(held_out), "steps") as update:
        return evaluate_offline(session, held_out, progress=lambda done, _: update(done))


def _trained_on(manifest: Manifest, digests: Sequence[str]) -> int:
    known = manifest.training.get(TRAINED_ON)
    return len(set(known) & {d[:DIGEST_CHARACTERS] for d in digests}) if isinstance(known, list) else 0


def _show(bundle: Bundle, report: OfflineReport, manifest: Manifest) -> None:
    names = {"policy": "policy", "last_action": "repeat last action", "mean_action": "mean action"}
    errors: dict[str, Errors] = {name: getattr(report, name) for name in names}
    steps = [s for s in _SHOWN_STEPS if s <= manifest.chunk]
    rows = [
        [names[n], _digits(e.mean), f"{report.scaled[n]:.3f}", *(_digits(e.per_step[s - 1]) for s in steps)]
        for n, e in errors.items()
    ]
    click.echo(
        f"{bundle.version} on {report.episodes} episodes, {report.samples} predictions of "
        f"{manifest.chunk} actions; mean absolute error, {manifest.action_convention.unit}"
    )
    show_table(["", ">mean", ">in σ", *(f">step {s}" for s in steps)], rows)
    show_table(
        ["action", *(f">{title}" for title in names.values())],
        [
            [action, *(_digits(e.per_dimension[i]) for e in errors.values())]
            for i, action in enumerate(report.action_names)
        ],
    )
    show_table(
        ["the policy against", ">mean", ">in σ", ">better in", ">better from"],
        [_against(report, names[n], errors["policy"], errors[n], n) for n in names if n != "policy"],
    )


def _against(report: OfflineReport, title: str, policy: Errors, other: Errors, name: str) -> list[str]:
    """One baseline: the policy's error relative to it, in how many columns it is lower, from which step."""
    won = sum(a < b for a, b in zip(policy.per_dimension, other.per_dimension, strict=True))
    behind = [i + 1 for i, (a, b) in enumerate(zip(policy.per_step, other.per_step, strict=True)) if a >= b]
    first = max(behind, default=0) + 1
    return [
        title,
        _change(policy.mean, other.mean),
        _change(report.scaled["policy"], report.scaled[name]),
        f"{won} of {len(other.per_dimension)} columns",
        f"step {first}" if first <= len(policy.per_step) else "no step",
    ]


def _change(value: float, base: float) -> str:
    return f"{value / base - 1.0:+.0%}" if base > 0 else "n/a"


def _digits(value: float) -> str:
    return f"{value:.4f}"
