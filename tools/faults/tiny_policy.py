"""Two versions of one untrained policy, small enough that exporting and running them costs seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hal.bench.world import World, WorldConfig
from policies.act import ACT
from policies.bundle import Bundle, reissue
from policies.config import IMAGENET_MEAN, IMAGENET_STD, ACTConfig, CameraShape, FeatureStats, NormStats
from policies.export import RawBatch, export_bundle
from policies.keys import KeyPair, write_public
from policies.manifest import BundleMeta
from policies.normalise import Normaliser

SIZE = 32
TINY = ACTConfig(
    cameras=(
        CameraShape(name="front", height=SIZE, width=SIZE),
        CameraShape(name="wrist", height=SIZE, width=SIZE),
    ),
    chunk=40,
    execute=16,
    dim=32,
    heads=4,
    ffn=48,
    encoder_layers=1,
    vae_layers=1,
    latent=4,
    dropout=0.0,
    backbone_width=8,
    backbone_norm="batch",
)


@dataclass(frozen=True)
class Policies:
    """Two versions of a policy that keeps the arm near its home pose, and who signed them."""

    first: Bundle
    second: Bundle
    root: Path
    trust: Path


def export_policies(root: Path) -> Policies:
    """Export and sign both versions below ``root``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    key = KeyPair.generate()
    write_public(key.public, root / "trust")
    world = World(WorldConfig(width=SIZE, height=SIZE))
    world.reset(0)
    home = tuple(world.home.tolist())
    picture = FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    stats = NormStats(
        state=FeatureStats(mean=home, std=(0.5,) * 6),
        action=FeatureStats(mean=home, std=(0.003,) * 6),
        images={camera.name: picture for camera in TINY.cameras},
    )
    rng = np.random.default_rng(0)
    batch = RawBatch(
        (np.array(home) + 0.1 * rng.normal(size=(8, 6))).astype(np.float32),
        {c.name: rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8) for c in TINY.cameras},
    )
    model = ACT(TINY).eval()
    first = export_bundle(
        model, Normaliser(stats, TINY), root / "bundles" / "first", key, BundleMeta(name="tiny"), [batch]
    )
    second = reissue(first, root / "bundles" / "second", key, monitors=None, evaluation={"success": 0.5})
    return Policies(first, second, root / "bundles", root / "trust")
