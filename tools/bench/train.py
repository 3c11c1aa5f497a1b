"""`ratchet bench train`: a training step of the published ACT, beside the same step as LeRobot takes it.

Both run in this process, in turn, on pictures and joints drawn at random. Ours is `learner.train`'s step as
`ratchet train` runs it, with everything LeRobot's does not have: loading, colour jitter, averaged weights,
the watch on the loss. LeRobot's gets its batch ready made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from tools.bench.common import quantile, show
from tools.console import say
from tools.options import json_flag

BUDGET = 2.3
BATCH, SIZE, CHUNK, EPISODES, STEPS = 8, 128, 100, 4, 200
DEMO_BATCH, DEMO_SIZE = 32, 96
WARM = 2
Step = Callable[[], object]
EXAMPLES = """
\b
Examples:
  ratchet bench train --json
  ratchet bench train --rounds 20 --compile
"""


@click.command(epilog=EXAMPLES)
@click.option("--rounds", type=click.IntRange(2, 1000), default=10, show_default=True,
              help="Steps of each kind, taken in turn.")  # fmt: skip
@click.option("--threads", type=click.IntRange(0, 256), default=0, help="Threads [default: torch's choice].")
@click.option("--compile", "with_compile", is_flag=True, help="Also through torch.compile (minutes).")
@json_flag
def command(rounds: int, threads: int, with_compile: bool, as_json: bool) -> None:
    """A training step of ACT: eager fp32 as LeRobot takes it, and ours; the same loss and gradients."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    figures = {"threads": torch.get_num_threads(), "rounds": rounds, **_full(rounds, with_compile)}
    show({**figures, **_demo(rounds)}, as_json)


def _full(rounds: int, with_compile: bool) -> dict[str, Any]:
    import torch

    from learner.config import ModelConfig, TrainConfig
    from learner.device import bf16_reason, pick_device, use_bf16
    from learner.memory import memory_kept
    from tools.bench import train_parts, train_peer
    from tools.bench.train_data import ready, samples, trainer

    say("the published network: the same weights in both forms")
    data = samples(SIZE, EPISODES, STEPS)
    network = ModelConfig(preset="full")
    config = TrainConfig(batch=BATCH, model=network, lr=1e-5, clip=10.0, warmup=0, steps=10_000)
    figures: dict[str, Any] = train_parts.compare(data, config)
    ours = trainer(data, config)
    peer = train_peer.PeerACT(ours.model.cpu()).train()
    ours.model.to(ours.device)
    optimiser = train_peer.peer_optimiser(peer)
    batch = ready(data, ours.normaliser, BATCH, CHUNK)
    kinds: dict[str, Step] = {
        "eager_fp32_step": lambda: train_peer.peer_step(peer, optimiser, batch),
        "step": _stepping(ours),
    }
    if with_compile:
        compiled = trainer(data, config.model_copy(update={"compile": "on"}))
        kinds["compiled_step"] = _stepping(compiled)
    say(f"steps in turn: {', '.join(kinds)}")
    with memory_kept(ours.model):  # as a run does; LeRobot's step gains by it as well
        times = in_turn(kinds, rounds)
    ratios = [a / b for a, b in zip(times["eager_fp32_step"], times["step"], strict=True)]
    device = pick_device(config.device)
    bf16 = use_bf16(config.precision, device)
    figures |= {f"{name}_ms": quantile(values, 50) for name, values in times.items()}
    figures |= {
        "speedup": quantile(ratios, 50),
        "budget": BUDGET,
        "held": quantile(ratios, 50) >= BUDGET,
        "precision": "bf16" if bf16 else "fp32",
        "bf16": bf16_reason(device),
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        "padding": _padding(ours, rounds),
    }
    say("each technique by itself, at the sizes of this network")
    figures["parts_ms"] = train_parts.parts(ours, rounds)
    gigaflops = train_parts.fastest_product(torch.float32)
    products = train_parts.multiplied(ours.model.config, BATCH)
    figures |= {
        "products_gflop": round(products, 1),
        "best_gflop_per_s": gigaflops,
        "best_bf16_gflop_per_s": train_parts.fastest_product(torch.bfloat16),
        "products_at_best_ms": round(1e3 * products / gigaflops, 1),
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
    }
    return figures


def _padding(ours: Any, rounds: int) -> float:
    """The share of the chunks' rows that lie past an episode's end, in the batches that were measured."""
    import torch

    numbers = range(WARM + rounds)
    batches = [ours.dataset.batch(ours.sampler.indices(number), CHUNK) for number in numbers]
    return round(float(torch.cat([batch.is_pad for batch in batches]).float().mean()), 3)


def _demo(rounds: int) -> dict[str, Any]:
    """The same for the demo's network, as `ratchet demo` trains it."""
    from learner.config import ModelConfig, TrainConfig
    from tools.bench.train_data import PlainStep, samples, trainer
    from tools.demo.plan import NETWORK

    say("the demo's network")
    data = samples(DEMO_SIZE, EPISODES, STEPS)
    network = ModelConfig.model_validate({"overrides": NETWORK})
    config = TrainConfig(batch=DEMO_BATCH, model=network, steps=10_000)
    ours = trainer(data, config)
    plain = PlainStep(data, config)
    times = in_turn({"plain": plain, "ours": _stepping(ours)}, 2 * rounds)
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    return {
        "demo_eager_fp32_step_ms": quantile(times["plain"], 50),
        "demo_step_ms": quantile(times["ours"], 50),
        "demo_speedup": quantile(ratios, 50),
    }


def _stepping(trainer: Any) -> Step:
    numbers = iter(range(1_000_000))
    return lambda: trainer.step(next(numbers))


def in_turn(kinds: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, ``rounds`` of each kind, one kind after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(-WARM, rounds):
        for name, step in kinds.items():
            began = time.perf_counter()
            step()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times
