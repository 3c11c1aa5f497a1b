"""Whether the network goes through torch.compile, decided before a run begins."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch

from policies.act import ACT

log = logging.getLogger(__name__)

# Compiling takes one to two minutes; a GPU earns them back within about so many steps.
LONG_RUN = 2000
COMPILERS = ("g++", "clang++", "c++")

Wish = Literal["auto", "on", "off"]


def compiled(model: ACT, wish: Wish, device: torch.device, steps: int) -> Callable[..., Any]:
    """``model`` as it is to be called. Parameters, checkpoints and averages remain those of ``model``.

    "auto" compiles on a GPU for runs of at least `LONG_RUN` steps. On a processor the products of
    matrices take up nearly all the time, which compiling does not change; `ratchet bench train --compile`
    measures it.
    """
    if wish == "off" or (wish == "auto" and (device.type != "cuda" or steps < LONG_RUN)):
        return model
    if not any(shutil.which(name) for name in COMPILERS):
        log.warning("training.not_compiled: none of %s is installed; the network runs as it is", COMPILERS)
        return model
    return torch.compile(model)
