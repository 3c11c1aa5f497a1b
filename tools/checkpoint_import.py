"""`ratchet model import`: a LeRobot ACT checkpoint as a signed bundle.

LeRobot's policies speak percent of each joint's range (or degrees) and its checkpoints do not say
which joints. With the arm's calibration file both are known, and the policy comes to speak rad:
the conversion is affine, so it disappears in the mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from episodes.store import EpisodeStore
from hal.calibration import RAD_PER_TICK, ZERO_TICK, Calibration
from hal.dynamixel.tables import TICKS_PER_TURN
from hal.types import JOINTS
from learner.bundles import calibration_batch
from learner.config import DataConfig
from learner.loading import load_dataset
from policies.act import ACT
from policies.bundle import Bundle
from policies.config import FeatureStats, NormStats
from policies.export import RawBatch, export_bundle
from policies.keys import KeyPair
from policies.lerobot import import_lerobot
from policies.manifest import KOCH_FEATURES, ActionConvention, BundleMeta
from policies.normalise import Normaliser
from tools.config import parse
from tools.errors import UsageError

F64 = npt.NDArray[np.float64]

_MADE_UP = 16
_GRIPPER = "gripper"


@dataclass(frozen=True)
class Source:
    """What the checkpoint does not say. Names default to numbers; ``calibration`` is a Koch's, in LeRobot's
    layout, ``degrees`` its use_degrees. ``store`` and ``where`` give real observations to quantise with."""

    checkpoint: Path
    name: str
    robot: str | None = None
    rate_hz: float = 30.0
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    calibration: Path | None = None
    degrees: bool = False
    store: Path | None = None
    where: str = "true"


def import_checkpoint(source: Source, out: Path, key: KeyPair) -> Bundle:
    """Publish the checkpoint as a bundle at ``out``.

    Raises CheckpointError, CalibrationError, UsageError; ExportError when its forms disagree.
    """
    model, normaliser = import_lerobot(source.checkpoint)
    dims = model.config.state_dim, model.config.action_dim
    state_names = source.state_names or _numbered("state", dims[0])
    action_names = source.action_names or _numbered("action", dims[1])
    convention, robot = ActionConvention(unit="as recorded"), source.robot or "unknown"
    if source.calibration is not None:
        if dims != (len(JOINTS), len(JOINTS)):
            raise UsageError(
                f"--calibration is for a Koch's 6 joints; the checkpoint has {dims[0]} and {dims[1]}"
            )
        stats = in_rad(normaliser.stats, Calibration.load(source.calibration), source.degrees)
        normaliser = Normaliser(stats, model.config)
        convention, robot = ActionConvention(), source.robot or "koch"
        state_names = action_names = KOCH_FEATURES
    for what, names, count in (("state", state_names, dims[0]), ("action", action_names, dims[1])):
        if len(names) != count:
            raise UsageError(
                f"--{what}-names has {len(names)} names, the checkpoint {count} values; name each"
            )
    quantised = "made-up observations" if source.store is None else "recorded observations"
    described = {
        "name": source.name,
        "robot": robot,
        "rate_hz": source.rate_hz,
        "state_names": state_names,
        "action_names": action_names,
        "action_convention": convention,
        "training": {
            "kind": "import",
            "source": f"lerobot {source.checkpoint.name}",
            "quantised_with": quantised,
        },
    }
    meta = parse(BundleMeta, described, "what was said about the checkpoint")
    samples = made_up(model, normaliser.stats) if source.store is None else _recorded(source, model)
    return export_bundle(model, normaliser, out, key, meta, [samples])


def in_rad(stats: NormStats, calibration: Calibration, degrees: bool) -> NormStats:
    """Statistics of LeRobot's units as those of rad.

    LeRobot 0.4's ``MotorsBus._normalize`` maps a joint's range of ticks to −100…100 (the gripper's to
    0…100), or with ``use_degrees`` to degrees about the middle of the range over 4095 ticks a turn.
    """
    scale, offset = np.empty(len(JOINTS)), np.empty(len(JOINTS))
    for index, joint in enumerate(JOINTS):
        row = calibration.joints[joint]
        span, middle = row.range_max - row.range_min, (row.range_max + row.range_min) / 2
        if joint == _GRIPPER:
            ticks, zero = span / 100, float(row.range_min)
        elif degrees:
            ticks, zero = (TICKS_PER_TURN - 1) / 360, middle
        else:
            ticks, zero = span / 200, middle
        scale[index], offset[index] = ticks * RAD_PER_TICK, (zero - ZERO_TICK) * RAD_PER_TICK

    def convert(feature: FeatureStats) -> FeatureStats:
        mean, std = np.asarray(feature.mean) * scale + offset, np.asarray(feature.std) * scale
        return FeatureStats(mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    return NormStats(state=convert(stats.state), action=convert(stats.action), images=stats.images)


def made_up(model: ACT, stats: NormStats) -> RawBatch:
    """Observations of the right size and spread: smooth random pictures, states as in training."""
    draw = np.random.default_rng(0)
    mean, std = np.asarray(stats.state.mean), np.asarray(stats.state.std)
    state = draw.normal(mean, std, (_MADE_UP, len(mean))).astype(np.float32)
    images = {}
    for camera in model.config.cameras:
        coarse = draw.integers(0, 256, (_MADE_UP, 9, 9, 3)).astype(np.uint8)
        images[camera.name] = np.stack([_enlarged(c, camera.height, camera.width) for c in coarse])
    return RawBatch(state, images)


def _enlarged(picture: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _recorded(source: Source, model: ACT) -> RawBatch:
    assert source.store is not None
    cameras = model.config.cameras
    sizes = {(c.height, c.width) for c in cameras}
    config = DataConfig(
        cameras=tuple(c.name for c in cameras),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        gaps="split",
    )
    with EpisodeStore.open(source.store, create=False, mode="r") as store:
        dataset = load_dataset(store, store.select(source.where), config)
    if dataset.state.shape[1] != model.config.state_dim:
        raise UsageError(
            f"the episodes have {dataset.state.shape[1]} states, the checkpoint takes "
            f"{model.config.state_dim}; select episodes of its robot with --where"
        )
    return calibration_batch(dataset)


def _numbered(what: str, count: int) -> tuple[str, ...]:
    return tuple(f"{what}_{i}" for i in range(count))
