"""Everything a run needs to go on to the bit, as named tensors: weights, average, moments, the watch."""

from __future__ import annotations

import torch

from learner.average import WeightAverage
from learner.errors import CheckpointError
from learner.watch import LossWatch
from policies.act import ACT


def tensors_of(
    model: ACT, average: WeightAverage[ACT], optimizer: torch.optim.Optimizer, watch: LossWatch
) -> dict[str, torch.Tensor]:
    """The state of a run; the model's and optimiser's are the live tensors, not copies."""
    names: dict[torch.Tensor, str] = {p: n for n, p in model.named_parameters()}
    out = {f"model.{k}": v for k, v in model.state_dict().items()}
    out |= {f"average.{k}": v for k, v in average.model.state_dict().items()}
    for parameter, state in optimizer.state.items():
        out |= {f"optimizer.{names[parameter]}.{k}": v for k, v in state.items()}
    return out | {"watch": watch.state()}


def restore(
    tensors: dict[str, torch.Tensor],
    model: ACT,
    average: WeightAverage[ACT],
    optimizer: torch.optim.Optimizer,
    watch: LossWatch,
) -> None:
    """Go on from what `tensors_of` gave. Raises CheckpointError when it does not fit the network."""
    try:
        model.load_state_dict(_under(tensors, "model."))
        average.model.load_state_dict(_under(tensors, "average."))
        watch.load(tensors["watch"])
        for name, parameter in model.named_parameters():
            state = _under(tensors, f"optimizer.{name}.")
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.dim() == 0 else torch.empty_like(parameter).copy_(v)
                for k, v in state.items()
            }
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            "the checkpoint does not fit the network", "delete it to start afresh"
        ) from error


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
