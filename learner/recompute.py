"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): activations are computed twice, not kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from learner.average import batchnorms
from policies.act import ACT
from policies.transformer import DecoderLayer, EncoderLayer


def recompute(model: ACT) -> None:
    """Have every transformer layer and every stage of ``model``'s backbone compute its activations twice.

    Loss, gradients and running statistics stay as they are, to the bit: random numbers are drawn again
    as they were, and BatchNorm does not count the second time.
    """
    for part in _parts(model):
        again = functools.partial(_contexts, part)
        part.forward = functools.partial(
            checkpoint, part.forward, use_reentrant=False, preserve_rng_state=True, context_fn=again
        )


def _parts(model: ACT) -> list[nn.Module]:
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, EncoderLayer | DecoderLayer)]
    return layers + [stage for net in model.backbones() for stage in net.stages()]


def _contexts(
    part: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _not_counted(part)


@contextlib.contextmanager
def _not_counted(part: nn.Module) -> Iterator[None]:
    before = [(norm, norm.momentum, _counted(norm)) for norm in batchnorms(part)]
    for norm, _, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(counted)


def _counted(norm: nn.BatchNorm2d) -> int:
    return 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
