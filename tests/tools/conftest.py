"""One simulated robot for all tests here: bench, policy server and `ratchet up`, each a real process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hal.bench.world import World, WorldConfig
from policies.act import ACT
from policies.bundle import Bundle, reissue
from policies.config import IMAGENET_MEAN, IMAGENET_STD, ACTConfig, CameraShape, FeatureStats, NormStats
from policies.export import RawBatch, export_bundle
from policies.keys import KeyPair, write_public
from policies.manifest import BundleMeta
from policies.normalise import Normaliser
from tests.runtime.broker import Broker
from tools.sim import SimRobot, start_sim

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
    """Two versions of one untrained policy that keeps the arm near its home pose, and who signed them."""

    first: Bundle
    second: Bundle
    root: Path
    trust: Path


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("bundles")
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
    meta = BundleMeta(name="tiny")
    first = export_bundle(
        ACT(TINY).eval(), Normaliser(stats, TINY), root / "bundles" / "first", key, meta, [batch]
    )
    second = reissue(first, root / "bundles" / "second", key, monitors=None, evaluation={"success": 0.5})
    return Policies(first, second, root / "bundles", root / "trust")


@pytest.fixture(scope="session")
def run_dir() -> Iterator[Path]:
    """Short: a unix socket's path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ratchet-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """HOST:PORT of a broker for the robot, or None where there is no mosquitto."""
    if not any(shutil.which("mosquitto", path=path) for path in (None, "/usr/sbin:/usr/local/sbin")):
        yield None
        return
    running = Broker(tmp_path_factory.mktemp("broker"))
    running.start()
    yield f"127.0.0.1:{running.port}"
    running.stop()


@pytest.fixture(scope="session")
def sim(policies: Policies, run_dir: Path, broker: str | None) -> Iterator[SimRobot]:
    with start_sim(
        run_dir,
        bundle=policies.first.path,
        trust=policies.trust,
        size=(SIZE, SIZE),
        name="tester",
        broker=broker,
    ) as running:
        yield running
