"""`ratchet train`: from recorded episodes to a signed bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from learner.errors import StoppedError
from tools.config import read_toml
from tools.console import disk_errors, say, show_fields, show_json
from tools.errors import UsageError
from tools.options import PATH, FiniteRange, ImageSize, json_flag, keys_option, registry_options, trust_option
from tools.paths import keys_dir, registry_dir, trust_dir

if TYPE_CHECKING:  # torch takes a second
    from learner.config import TrainConfig

EXAMPLES = """
\b
Examples:
  ratchet train --store episodes --out out/bundle --steps 3000
  ratchet train --store episodes --where "robot = 'cr5'" --out out/cr5 --set chunk=16 --set batch=16
  ratchet train --store episodes --out out/mixed --mix 3 "kind = 'demo'" --mix 1 "flagged"
  ratchet train --store episodes --out out/lite --set backbone=efficientnet_lite0 --pretrained imagenet
  ratchet train --out out/bundle --resume

\b
Settings for --set: those of the run (steps, batch, accumulate, lr, seed, threads, precision, recompute,
compile, watch.factor …), of the data (data.gaps, data.max_gap_ticks …), of the colour jitter
(jitter.brightness …), and of the network (chunk, execute, dim, heads, ffn, encoder_layers,
decoder_layers, use_vae, kl_weight, dropout, backbone, backbone_width …). See docs/training.md.
"""
BASE_WHERE = "kind IN ('demo', 'import') AND outcome <> 'failure'"


@click.command(epilog=EXAMPLES)
@click.option("--store", type=PATH, help="The episode store.")
@click.option("--where", help=f"SQL condition over its catalogue [default: {BASE_WHERE}].")
@click.option("--mix", type=(FiniteRange(0.0, min_open=True), str), multiple=True, metavar="WEIGHT SQL",
              help="Instead of --where, repeated: a selection and its share of every batch.")  # fmt: skip
@click.option("--out", type=PATH, required=True, help="Where the bundle goes; must not exist.")
@click.option("--preset", type=click.Choice(["small", "full"]), help="The network [default: small].")
@click.option("--pretrained", type=PATH, metavar="imagenet|FILE",
              help="Begin with the backbone's ImageNet weights, or those of a file.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps [default: 3000].")
@click.option("--image-size", type=ImageSize(), help="Train on pictures of this size.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting; see below.")
@click.option("--config", type=PATH, help="Settings as a TOML file; the options go over it.")
@click.option("--resume", is_flag=True, help="Continue the interrupted run for --out.")
@click.option("--no-register", is_flag=True, help="Only make the bundle.")
@registry_options
@keys_option
@trust_option
@json_flag
def train(
    store: Path | None,
    where: str | None,
    mix: tuple[tuple[float, str], ...],
    out: Path,
    preset: str | None,
    pretrained: Path | None,
    steps: int | None,
    image_size: tuple[int, int] | None,
    settings: tuple[str, ...],
    config: Path | None,
    resume: bool,
    no_register: bool,
    registry: Path | None,
    name: str,
    keys: Path | None,
    trust: Path | None,
    as_json: bool,
) -> None:
    """Train a policy from the selected episodes, sign it, and register it.

    Ctrl-C leaves a checkpoint that --resume continues.
    """
    from tools import training
    from tools.registry import Registry

    if out.exists():
        raise UsageError(f"{out} exists and bundles never change; choose another --out")
    options = _options(preset, pretrained, steps, image_size, settings)
    with disk_errors(out.parent):
        if resume:
            plan = training.stored_plan(out)
            if mix:
                raise UsageError("the mix of a run is that it was begun with; leave --mix out with --resume")
            if store is not None or where is not None or options or config is not None:
                _same(plan, store, where, _chosen(config, options))
        elif store is None:
            raise UsageError("which episodes? give --store DIR, or --resume to continue a run")
        elif mix and where is not None:
            raise UsageError("--mix says which episodes, and so does --where; give one of them")
        else:
            chosen = _chosen(config, options)
            plan = training.new_plan(store, where or BASE_WHERE, chosen, name, out, mix)
        root = None if no_register else registry_dir(registry, plan.name)
        opening = (
            Registry.open(root, plan.name, keys_dir(keys), trust_dir(trust, keys))
            if root is not None
            else None
        )
        try:
            done = training.run(plan, out, keys_dir(keys), opening)
        except StoppedError as error:
            say(f"ratchet: {error.what}; go on with: ratchet train --out {out} --resume")
            sys.exit(130)
    _report(done, plan, out, root, as_json)


def _chosen(config: Path | None, settings: list[str]) -> TrainConfig:
    """The file's settings with those of the command line over them; each blamed for its own."""
    from tools.settings import train_config

    raw = read_toml(config) if config is not None else {}
    if config is not None:
        train_config(raw, (), str(config))
    return train_config(raw, settings)


def _options(
    preset: str | None,
    pretrained: Path | None,
    steps: int | None,
    image_size: tuple[int, int] | None,
    settings: tuple[str, ...],
) -> list[str]:
    """The options that are short for settings, as settings; those of ``--set`` come last and win."""
    short = []
    if preset is not None:
        short.append(f'model.preset="{preset}"')
    if pretrained is not None:
        # A run may be continued from another folder.
        short.append(f"pretrained={pretrained if str(pretrained) == 'imagenet' else pretrained.absolute()}")
    if steps is not None:
        short.append(f"steps={steps}")
    if image_size is not None:
        short.append(f"data.image_size={list(image_size)}")
    return [*short, *settings]


def _same(plan: Any, store: Path | None, where: str | None, config: Any) -> None:
    """Refuse to continue a run with something else than it was begun with."""
    for option, given, begun in (
        ("--store", store.absolute() if store else plan.store, plan.store),
        ("--where", where or plan.where, plan.where),
        ("the settings", config, plan.config),
    ):
        if given != begun:
            raise UsageError(
                f"the run was begun with another value of {option}; leave it out with --resume, "
                "or delete the .training folder and start afresh"
            )


def _report(done: Any, plan: Any, out: Path, registry: Path | None, as_json: bool) -> None:
    manifest, result = done.bundle.manifest, done.result
    parity = manifest.parity
    if as_json:
        show_json(
            {
                "bundle": done.bundle.version,
                "path": out,
                "loss": result.losses[-1][1] if result.losses else None,
                "seconds": result.seconds,
                "samples_per_s": result.samples_per_s,
                "waiting": result.waiting,
                "parity": parity.model_dump(mode="json"),
                "registered": done.standing,
                "registry": registry,
            }
        )
        return
    cameras = ", ".join(f"{c.name} {c.height}x{c.width}" for c in manifest.cameras)
    loss = f"loss {result.losses[-1][1]:.4f}, " if result.losses else ""
    fields = {
        "bundle": f"{done.bundle.version} in {out}, signed by {done.bundle.signer}",
        "trained": f"{loss}{result.seconds:.0f} s, {result.samples_per_s:.0f} samples/s, "
        f"{result.waiting:.1%} of the time waiting for data",
        "policy": f"robot {manifest.robot}, {len(manifest.action_names)} actions "
        f"({manifest.action_convention.unit}), chunk {manifest.chunk}, cameras {cameras}",
        "fp32 parity": f"largest error {parity.fp32_error:.1e} σ of {parity.fp32_tolerance:.0e} allowed",
        "int8 parity": f"mean error {parity.int8_error:.1e} σ of {parity.int8_tolerance:.0e} allowed",
    }
    if done.standing is not None:
        fields["registered"] = f"{done.standing} of {plan.name} in {registry}"
    show_fields(fields)
    if manifest.robot == "koch":
        say(f"next: ratchet evaluate {out} --seeds 0:50")
    else:
        say(f'next: ratchet evaluate {out} --offline --store {plan.store} --where "…held-out episodes…"')
