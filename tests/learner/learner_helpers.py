"""A toy arm whose pictures say where it should go, as arrays and as a real store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig
from learner.config import ModelConfig, TrainConfig
from learner.data import SOURCE_INTERVENTION, SOURCE_POLICY, SOURCE_TELEOP, EpisodeArrays
from policies.bundle import Bundle
from policies.keys import KeyPair, TrustStore

SIZE = 32
TICK_NS = 33_333_333
CAMERAS = ("front", "wrist")
TINY = ModelConfig(
    overrides={
        "chunk": 8,
        "execute": 4,
        "dim": 32,
        "ffn": 48,
        "heads": 4,
        "backbone_width": 8,
        "backbone_blocks": 1,
        "encoder_layers": 1,
        "latent": 4,
    }
)


@dataclass(frozen=True)
class Shop:
    """A key, whom it is trusted by, and a bundle of the champion."""

    keys: Path
    key: KeyPair
    trust: TrustStore
    bundle: Bundle


def tiny_config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "steps": 30,
        "batch": 8,
        "warmup": 5,
        "lr": 1e-3,
        "log_every": 5,
        "checkpoint_every": 10,
        "batchnorm_batches": 2,
        "threads": 1,
        "model": TINY,
    }
    return TrainConfig.model_validate({**values, **changes})


def picture(target: np.ndarray, camera: int) -> np.ndarray:
    """(SIZE, SIZE, 3): grey, its brightness and a bar's place given by two of the target's joints."""
    image = np.full((SIZE, SIZE, 3), 60 + int(60 * target[camera]), np.uint8)
    at = int((SIZE - 6) * (0.5 + 0.5 * target[2 + camera]))
    image[:, max(0, at) : at + 6] = (220, 40, 40)
    return image


def episode(seed: int, ticks: int = 24, taken_over_at: int | None = None) -> EpisodeArrays:
    """Moves from 0 to a random target that the pictures show; before ``taken_over_at`` the policy drove."""
    rng = np.random.default_rng(seed)
    target = np.tanh(rng.normal(size=6)).astype(np.float32)
    along = np.linspace(0, 1, ticks + 1, dtype=np.float32)[:, None]
    path = along * target
    source = np.full(ticks, SOURCE_TELEOP, np.uint8)
    if taken_over_at is not None:
        source[:taken_over_at], source[taken_over_at:] = SOURCE_POLICY, SOURCE_INTERVENTION
    images = {
        name: np.repeat(picture(target, i)[None], ticks, axis=0).copy() for i, name in enumerate(CAMERAS)
    }
    clone = (source == SOURCE_TELEOP) | (source == SOURCE_INTERVENTION)
    return EpisodeArrays(f"e{seed}", path[:-1].copy(), path[1:].copy(), images, source, clone)


def record(
    store: EpisodeStore,
    arrays: EpisodeArrays,
    *,
    kind: str = "demo",
    skip: tuple[int, ...] = (),
    lost_frames: tuple[int, ...] = (),
    flagged: bool = False,
    provenance: dict[str, object] | None = None,
) -> str:
    """Write an episode as the recorder does; ``skip`` leaves ticks out, which makes gaps."""
    streams = (
        StreamSpec(name="observation.state", shape=(6,), unit="rad"),
        StreamSpec(name="action", shape=(6,), unit="rad"),
        StreamSpec(name="tick.source", dtype="uint8"),
    )
    cameras = tuple(CameraSpec(name=n, height=SIZE, width=SIZE) for n in arrays.images)
    spec = EpisodeSpec(
        task="toy",
        fps=30.0,
        streams=streams,
        cameras=cameras,
        kind=kind,  # type: ignore[arg-type]
        provenance=provenance or {},
    )
    writer = store.begin(
        spec, episode_id=arrays.episode, started_ns=0, config=WriterConfig(wait_when_full=True)
    )
    for i in range(len(arrays.state)):
        if i in skip:
            continue
        t = i * TICK_NS
        writer.append("observation.state", t, i, arrays.state[i])
        writer.append("action", t, i, arrays.action[i])
        writer.append("tick.source", t, i, np.uint8(arrays.source[i]))
        for name, frames in arrays.images.items():
            if i not in lost_frames:
                writer.append_frame(name, t, i, frames[i])
    taken = np.flatnonzero(arrays.source == SOURCE_INTERVENTION)
    if len(taken):
        writer.intervention(int(taken[0]) * TICK_NS, int(taken[-1]) * TICK_NS, "operator")
    if flagged:
        writer.flag("timeout", 0, TICK_NS, 1.5, {})
    reference = writer.end(outcome="success", reason="done")
    reference.wait()
    return arrays.episode


def make_store(path: Path, demos: int = 8, corrections: int = 4) -> EpisodeStore:
    """A store with demonstrations and taken-over rollouts, open for writing."""
    store = EpisodeStore.open(path)
    for seed in range(demos):
        record(store, episode(seed))
    for seed in range(100, 100 + corrections):
        record(store, episode(seed, taken_over_at=10), kind="rollout", flagged=True)
    return store
