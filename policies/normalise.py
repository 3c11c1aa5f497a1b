"""Between raw units (rad, uint8 pixels) and what the network sees."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.config import NORM_EPS, ACTConfig, FeatureStats, NormStats
from policies.errors import ConfigError


class Normaliser(nn.Module):
    """Mean/std normalisation as LeRobot does it: in ``(x − mean)/(std + 1e-8)``, out ``x·std + mean``."""

    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, stats: NormStats, config: ACTConfig) -> None:
        """Raises ConfigError when ``stats`` do not fit ``config``'s dimensions and cameras."""
        super().__init__()
        try:
            stats.check(config)
        except ValueError as error:
            raise ConfigError(f"normalisation does not fit the network: {error}") from error
        self.stats = stats
        self.config = config
        for name, feature in (("state", stats.state), ("action", stats.action)):
            self.register_buffer(f"{name}_mean", torch.tensor(feature.mean), persistent=False)
            self.register_buffer(f"{name}_std", torch.tensor(feature.std), persistent=False)
        ordered = [stats.images[camera.name] for camera in config.cameras]
        self.register_buffer("image_mean", torch.tensor([s.mean for s in ordered]), persistent=False)
        self.register_buffer("image_std", torch.tensor([s.std for s in ordered]), persistent=False)

    def state(self, state: Tensor) -> Tensor:
        """(…, S) rad → normalised."""
        return (state - self.state_mean) / (self.state_std + NORM_EPS)

    def actions(self, actions: Tensor) -> Tensor:
        """(…, A) rad → normalised."""
        return (actions - self.action_mean) / (self.action_std + NORM_EPS)

    def restore_actions(self, actions: Tensor) -> Tensor:
        """(…, A) normalised → rad."""
        return actions * self.action_std + self.action_mean

    def images(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """uint8 (B, H, W, 3) by camera name → normalised float (B, 3, h, w) in the network's order.

        The result is channels-last in memory, which is what fast convolutions on a CPU want.
        """
        return [self.image(i, images[camera.name]) for i, camera in enumerate(self.config.cameras)]

    def image(self, index: int, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) of the camera at ``index`` → normalised (B, 3, h, w)."""
        return self.scale(index, self.picture(pixels))

    def picture(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → pixel values (B, 3, h, w), scaled and cropped as configured."""
        size, crop = self.config.resize, self.config.crop
        if size is None or tuple(pixels.shape[1:3]) == size:
            if crop is not None:
                top, left = _middle(pixels.shape[1], crop[0]), _middle(pixels.shape[2], crop[1])
                pixels = pixels[:, top : top + crop[0], left : left + crop[1]]
            return pixels.permute(0, 3, 1, 2).to(self.image_mean.dtype)
        x = pixels.permute(0, 3, 1, 2).to(self.image_mean.dtype)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if crop is None:
            return x
        top, left = _middle(size[0], crop[0]), _middle(size[1], crop[1])
        return x[:, :, top : top + crop[0], left : left + crop[1]]

    def scale(self, index: int, x: Tensor) -> Tensor:
        """Pixel values (B, 3, h, w) of the camera at ``index`` → normalised."""
        # Subtracted in pixel units: one multiplication less than dividing by 255 first, and exact.
        scale = 1.0 / (255.0 * (self.image_std[index] + NORM_EPS))
        return (x - 255.0 * self.image_mean[index].view(1, 3, 1, 1)) * scale.view(1, 3, 1, 1)


def _middle(whole: int, part: int) -> int:
    return (int(whole) - part) // 2


def feature_stats(values: Tensor) -> FeatureStats:
    """Statistics of ``values`` (N, D) over N, population standard deviation, as LeRobot's datasets."""
    flat = values.reshape(-1, values.shape[-1]).double()
    mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
    return FeatureStats(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
