"""Augmentation of a batch, vectorised: every picture gets its own shift and its own colour matrix."""

from __future__ import annotations

import torch

from learner.config import JitterConfig

# Rec. 601 luma, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)


def jitter(pixels: torch.Tensor, config: JitterConfig, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation of uint8 (B, H, W, 3) → float32 (B, H, W, 3) in 0…255.

    The three are one affine map of the colour x per image (brightness b, contrast c about the mean
    grey m of the brightened image, saturation s about each pixel's grey lᵀx):
    y = c·b·(s·I + (1 − s)·1·lᵀ)·x + (1 − c)·m, clamped.
    """
    if config.shift:
        pixels = shifted(pixels, config.shift, generator)
    count, height, width, _ = pixels.shape
    b, c, s = (
        (1.0 + spread * (2.0 * torch.rand(count, generator=generator) - 1.0)).to(pixels.device)[:, None, None]
        for spread in (config.brightness, config.contrast, config.saturation)
    )
    luma = torch.tensor(_LUMA, device=pixels.device)[:, None]
    # A plane a colour: processors compute along rows, and three colours side by side are a short row.
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).flatten(2)
    grey = (x * luma).sum(1, keepdim=True)
    mean = grey.mean(2, keepdim=True) * b
    shade = grey.mul_(c * b * (1.0 - s)).add_((1.0 - c) * mean)
    y = x.mul_(c * b * s).add_(shade).clamp_(0.0, 255.0)
    return y.view(count, 3, height, width).permute(0, 2, 3, 1)


def shifted(pixels: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Each picture of (B, H, W, 3) moved by its own whole pixels within ±``shift``, its edge repeated."""
    count, height, width, _ = pixels.shape
    by = torch.randint(-shift, shift + 1, (count, 2), generator=generator).to(pixels.device)
    rows = (torch.arange(height, device=pixels.device) + by[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + by[:, 1:]).clamp_(0, width - 1)
    picture = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[picture, rows[:, :, None], columns[:, None, :]]
