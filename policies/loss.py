"""The loss ACT is trained with: masked L1 on the chunk plus the posterior's KL divergence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from policies.act import ACTOutput


class LossTerms(NamedTuple):
    """``total`` = ``l1`` + kl_weight · ``kl``; scalars. ``kl`` is 0 where there was no posterior."""

    total: Tensor
    l1: Tensor
    kl: Tensor


def act_loss(output: ACTOutput, actions: Tensor, is_pad: Tensor, kl_weight: float) -> LossTerms:
    """Loss of a batch, as LeRobot 0.4.4 computes it.

    ``actions`` (B, H, A) normalised, ``is_pad`` bool (B, H).
    KL(N(mu, σ²) ‖ N(0, 1)) = −½ Σ (1 + log σ² − mu² − σ²), summed over the latent and averaged over
    the batch (Kingma & Welling 2013, appendix B).
    """
    l1 = masked_l1(output.actions, actions, is_pad)
    if output.mu is None or output.log_sigma_x2 is None:
        return LossTerms(l1, l1, l1.new_zeros(()))
    mu, log_sigma_x2 = output.mu.float(), output.log_sigma_x2.float()
    kl = (-0.5 * (1 + log_sigma_x2 - mu.square() - log_sigma_x2.exp())).sum(-1).mean()
    return LossTerms(l1 + kl_weight * kl, l1, kl)


def masked_l1(predicted: Tensor, actions: Tensor, is_pad: Tensor) -> Tensor:
    """Mean over all (B, H, A) values of |predicted − actions|, padding (``is_pad`` (B, H)) counted as 0.

    Dividing by all values, not by the valid ones, is the published form: a sample that is mostly
    padding weighs less.
    """
    error = (predicted.float() - actions.float()).abs()
    return (error * ~is_pad[..., None]).mean()
