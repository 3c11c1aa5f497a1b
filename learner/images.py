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
        1.0 + spread * (2.0 * torch.rand(count, generator=generator) - 1.0)
        for spread in (config.brightness, config.contrast, config.saturation)
    )
    luma = torch.tensor(_LUMA)
    x = pixels.to(torch.float32).reshape(count, -1, 3)
    grey = (x.mean(dim=1).cpu() * luma).sum(1) * b
    mix = s[:, None, None] * torch.eye(3) + (1.0 - s)[:, None, None] * luma.expand(3, 3)
    matrix = ((c * b)[:, None, None] * mix).transpose(1, 2)
    offset = ((1.0 - c) * grey)[:, None, None].expand(count, 1, 3)
    y = torch.baddbmm(offset.to(x.device), x, matrix.to(x.device))
    return y.clamp_(0.0, 255.0).reshape(count, height, width, 3)


def shifted(pixels: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Each picture of (B, H, W, 3) moved by its own whole pixels within ±``shift``, its edge repeated."""
    count, height, width, _ = pixels.shape
    by = torch.randint(-shift, shift + 1, (count, 2), generator=generator).to(pixels.device)
    rows = (torch.arange(height, device=pixels.device) + by[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + by[:, 1:]).clamp_(0, width - 1)
    picture = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[picture, rows[:, :, None], columns[:, None, :]]
