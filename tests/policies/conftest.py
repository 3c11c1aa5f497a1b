"""A tiny policy and its bundle, exported once for all tests here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.act import ACT
from policies.bundle import Bundle
from policies.config import IMAGENET_MEAN, IMAGENET_STD, ACTConfig, CameraShape, FeatureStats, NormStats
from policies.export import RawBatch, export_bundle
from policies.keys import KeyPair, TrustStore
from policies.manifest import BundleMeta
from policies.normalise import Normaliser

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"

TINY = ACTConfig(
    cameras=(CameraShape(name="front", height=64, width=96), CameraShape(name="wrist", height=64, width=64)),
    chunk=8,
    execute=4,
    dim=32,
    heads=4,
    ffn=48,
    encoder_layers=1,
    vae_layers=1,
    latent=4,
    dropout=0.0,
    backbone_width=8,
    backbone_norm="batch",
    backbone_per_camera=True,
)


def make_stats(config: ACTConfig) -> NormStats:
    picture = FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return NormStats(
        state=FeatureStats(mean=(0.1,) * config.state_dim, std=(0.5,) * config.state_dim),
        action=FeatureStats(mean=(-0.2,) * config.action_dim, std=(0.4,) * config.action_dim),
        images={camera.name: picture for camera in config.cameras},
    )


def make_batch(config: ACTConfig, size: int, seed: int = 0) -> RawBatch:
    rng = np.random.default_rng(seed)
    images = {
        camera.name: rng.integers(0, 256, (size, camera.height, camera.width, 3), dtype=np.uint8)
        for camera in config.cameras
    }
    return RawBatch(rng.normal(size=(size, config.state_dim)).astype(np.float32), images)


def make_model(config: ACTConfig, seed: int = 0) -> tuple[ACT, Normaliser]:
    torch.manual_seed(seed)
    return ACT(config).eval(), Normaliser(make_stats(config), config)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def key() -> KeyPair:
    return KeyPair.generate()


@pytest.fixture(scope="session")
def trust(key: KeyPair) -> TrustStore:
    return TrustStore([key.public])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, key: KeyPair) -> Bundle:
    model, normaliser = make_model(TINY)
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    meta = BundleMeta(name="tiny", training={"steps": 0})
    return export_bundle(model, normaliser, out, key, meta, [make_batch(TINY, 8, seed=1)])


@pytest.fixture
def copy(exported: Bundle, tmp_path: Path) -> Callable[[], Path]:
    """A bundle directory that a test may damage."""

    def make() -> Path:
        target = tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(exported.path, target)
        return target

    return make
