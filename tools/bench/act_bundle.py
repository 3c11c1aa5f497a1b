"""The policy that is served while time is measured: ACT over two 640×480 cameras, untrained.

It costs what a trained one costs. Its actions stay near the arm's home pose, and go through the
guard like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from policies.config import ACTConfig

CAMERA_SIZE = (640, 480)
RESIZE = (240, 320)
DESCRIPTION = (
    "ACT small (half-width ResNet-18 per camera), two 640x480 pictures resized to 320x240 inside, chunk 32"
)
_ACTION_SPREAD = 0.03  # rad


@dataclass(frozen=True, slots=True)
class Served:
    """Where the bundle lies and whose signatures are trusted."""

    bundle: Path
    trust: Path


def export(root: Path) -> Served:
    """Export and sign the bundle below ``root``, or find it there. Raises PolicyError."""
    from policies.config import FULL_CAMERAS, act_small

    return export_untrained(root, act_small(cameras=FULL_CAMERAS).model_copy(update={"resize": RESIZE}))


def export_untrained(root: Path, config: ACTConfig) -> Served:
    """As `export`, any network. Its actions stay near the home pose."""
    served = Served(root / "bundle", root / "trust")
    if not served.bundle.exists():
        _export(served, config)
    return served


def _export(served: Served, config: ACTConfig) -> None:
    import torch

    from hal.bench.world import World
    from policies.act import ACT
    from policies.config import IMAGENET_MEAN, IMAGENET_STD, FeatureStats, NormStats
    from policies.export import RawBatch, export_bundle
    from policies.keys import KeyPair, write_public
    from policies.manifest import BundleMeta
    from policies.normalise import Normaliser

    torch.manual_seed(0)
    key = KeyPair.generate()
    write_public(key.public, served.trust)
    home = World.home
    stats = NormStats(
        state=FeatureStats(mean=tuple(home.tolist()), std=(0.5,) * 6),
        action=FeatureStats(mean=tuple(home.tolist()), std=(_ACTION_SPREAD,) * 6),
        images={c.name: FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD) for c in config.cameras},
    )
    rng = np.random.default_rng(0)
    batch = RawBatch(
        (home + 0.1 * rng.normal(size=(2, 6))).astype(np.float32),
        {c.name: rng.integers(0, 256, (2, c.height, c.width, 3), dtype=np.uint8) for c in config.cameras},
    )
    export_bundle(
        ACT(config).eval(), Normaliser(stats, config), served.bundle, key, BundleMeta(name="bench"), [batch]
    )
