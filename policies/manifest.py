"""What a bundle says about itself: the one file that is signed.

The manifest lists every other file with its size and SHA-256, so its own bytes identify the whole
bundle: the content id is their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from policies.config import CameraShape, NormStats
from policies.errors import ManifestError, WrongRobotError

KOCH_FEATURES = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)

MODEL_FILE = "model.safetensors"
FP32_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
PROCESSORS_FILE = "processors.json"
GOLDEN_FILE = "golden.safetensors"
BUNDLE_FILES = (MODEL_FILE, FP32_FILE, INT8_FILE, PROCESSORS_FILE, GOLDEN_FILE)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
FeatureName = Annotated[str, Field(min_length=1, max_length=128)]
Features = Annotated[tuple[FeatureName, ...], Field(min_length=1, max_length=4096)]
ContentId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}([0-9a-f]{52})?$")]
JsonObject = dict[str, JsonValue]


class FileEntry(BaseModel):
    """One file of the bundle: a plain name, its size in bytes and its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Name
    size: int = Field(ge=0, le=4 * 2**30)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ActionConvention(BaseModel):
    """What an action means: joint goals, in which unit, absolute or relative to the measured state.

    Unit "as recorded" is that of the data it was trained on, such as another robot's joint speeds or
    LeRobot's percent of range: a runtime that drives joints in rad refuses it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["rad", "as recorded"] = "rad"
    kind: Literal["absolute", "relative"] = "absolute"


class Parity(BaseModel):
    """How far the ONNX forms are from the torch form, in standard deviations of the action.

    fp32: the largest error of any value. int8: the mean absolute error. Measured on the
    calibration inputs at export; each ``error`` was within its ``tolerance`` then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fp32_error: float = Field(ge=0.0)
    fp32_tolerance: float = Field(gt=0.0, le=0.1)
    int8_error: float = Field(ge=0.0)
    int8_tolerance: float = Field(gt=0.0, le=1.0)
    int8_scheme: str = Field(max_length=512)
    samples: int = Field(ge=1)


class BundleMeta(BaseModel):
    """The part of a manifest its maker decides; the rest follows from the network.

    ``training`` describes the run (free JSON), ``dataset`` is the fingerprint of what it was
    trained on, ``parent`` the content id it was fine-tuned from. ``monitors`` holds the thresholds
    calibrated for exactly these weights, None until they have been.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    version_number: int = Field(default=1, ge=1)
    parent: ContentId | None = None
    robot: Name = "koch"
    state_names: Features = KOCH_FEATURES
    action_names: Features = KOCH_FEATURES
    rate_hz: float = Field(default=30.0, gt=0.0, le=1000.0)
    action_convention: ActionConvention = ActionConvention()
    execute: int | None = Field(default=None, ge=1, le=1024)
    training: JsonObject = {}
    dataset: str | None = Field(default=None, max_length=256)
    evaluation: JsonObject | None = None
    monitors: JsonObject | None = None


class Manifest(BundleMeta):
    """Everything about one policy version. See `BundleMeta` for what its maker decides."""

    schema_id: Literal["ratchet.bundle/1"] = "ratchet.bundle/1"
    created: str = Field(max_length=64)
    reissue_of: ContentId | None = None
    cameras: tuple[CameraShape, ...] = Field(min_length=1, max_length=8)
    normalisation: NormStats
    chunk: int = Field(ge=1, le=1024)
    execute: int = Field(ge=1, le=1024)
    feature_dim: int = Field(ge=1, le=4096)
    parity: Parity
    files: tuple[FileEntry, ...] = Field(max_length=64)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.execute > self.chunk:
            raise ValueError(f"execute {self.execute} is more than chunk {self.chunk}")
        if len(self.normalisation.state.mean) != len(self.state_names):
            raise ValueError("state statistics and state names differ in length")
        if len(self.normalisation.action.mean) != len(self.action_names):
            raise ValueError("action statistics and action names differ in length")
        if {camera.name for camera in self.cameras} - set(self.normalisation.images):
            raise ValueError("a camera has no statistics")
        paths = [entry.path for entry in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        return self

    def entry(self, path: str) -> FileEntry:
        """The listing of ``path``. Raises ManifestError when it is not part of the bundle."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ManifestError(f"the manifest lists no {path}; the bundle is incomplete, export it again")

    def require(self, robot: str, state: tuple[str, ...], cameras: tuple[CameraShape, ...]) -> None:
        """Raise WrongRobotError unless the policy was made for this robot, joints in rad and pictures."""
        if self.robot != robot:
            raise WrongRobotError(
                f"bundle is for robot {self.robot!r}, this is {robot!r}; pick another bundle"
            )
        if self.action_convention.unit != "rad":
            raise WrongRobotError(
                "bundle speaks the units of its training data, not rad; train it on episodes recorded in rad"
            )
        if self.state_names != state:
            raise WrongRobotError(f"bundle expects joints {list(self.state_names)}, here are {list(state)}")
        here = {camera.name: camera for camera in cameras}
        for camera in self.cameras:
            if here.get(camera.name) != camera:
                raise WrongRobotError(
                    f"bundle expects camera {camera.name!r} at {camera.height}×{camera.width}, here is "
                    f"{here.get(camera.name)}; configure that camera"
                )

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, one space of indent, no NaN. Raises ManifestError on NaN."""
        try:
            text = json.dumps(
                self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
            )
        except ValueError as error:
            raise ManifestError(f"the manifest holds a value JSON cannot: {error}") from error
        return text.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse and check. Raises ManifestError, one line, naming the first field that is wrong."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ManifestError(f"manifest field {where}: {first['msg']}; made by other software?") from None


def content_id(manifest_bytes: bytes) -> str:
    """SHA-256 of the manifest, 64 hex digits; the first 12 are the version shown to people."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def now_label() -> str:
    """Wall-clock time for ``created``: UTC, whole seconds. A label, never used for ordering."""
    return datetime.now(UTC).isoformat(timespec="seconds")
