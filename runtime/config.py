"""What a robot is: its ports, cameras, limits, doors. Frozen and bounded; `ratchet.toml` in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from episodes.spec import PictureCodec
from hal.dynamixel.bus import BusConfig as ReplyConfig
from runtime.camera_process import CameraName, CameraSpec
from runtime.control import ControlConfig
from runtime.fleet.config import FleetConfig
from runtime.guard import GuardLimits
from runtime.health import HealthConfig
from runtime.monitors import MonitorConfig
from runtime.policy_source import PolicyConfig
from runtime.realtime import RealtimeConfig
from runtime.remote.config import RemoteConfig
from runtime.servo import ServoConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IdentityConfig(_Frozen):
    """Who this robot is on the fleet and in every episode's provenance."""

    id: str = Field(default="koch", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    site: str = Field(default="home", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")


class ArmConfig(_Frozen):
    """One arm on one serial port. Without a calibration file the arm is refused, unless ``uncalibrated``."""

    port: str = Field(min_length=1)
    baud: int = Field(default=1_000_000, ge=9600, le=4_500_000)
    calibration: Path | None = None
    uncalibrated: bool = Field(default=False, description="use the middle of each motor's turn as zero")

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        if self.calibration is None and not self.uncalibrated:
            raise ValueError(
                'an arm needs calibration = "file.json" (make one with `ratchet calibrate`), '
                "or uncalibrated = true on the bench"
            )
        return self


class BusTuning(_Frozen):
    """How patient the bus processes are with the motors' replies, and the motors with the bus."""

    replies: ReplyConfig = ReplyConfig()
    watchdog_ms: int = Field(default=100, ge=20, le=2540, description="of silence until the motors stop")


class StoreConfig(_Frozen):
    """Where episodes go, how their pictures are kept, and how much of the disk they may have.

    ``budget_gb`` (10^9 bytes; None: all there is) deletes the oldest episodes that are synced and unflagged.
    ``keep_last_s`` seconds are held in memory while nothing is recorded, so that a key can still keep them;
    at most ``keep_last_mb``.
    """

    path: Path = Path("/var/lib/ratchet/episodes")
    codec: PictureCodec = "jpeg"
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    crf: int = Field(default=22, ge=10, le=40, description="with H.264; less is better and larger")
    budget_gb: float | None = Field(default=None, gt=0.0)
    keep_last_s: float = Field(default=0.0, ge=0.0, le=300.0)
    keep_last_mb: int = Field(default=256, ge=1, le=16_384)


class RobotConfig(_Frozen):
    """Everything `ratchet up` needs to know."""

    robot: IdentityConfig = IdentityConfig()
    follower: ArmConfig
    leader: ArmConfig | None = None
    bus: BusTuning = BusTuning()
    cameras: dict[CameraName, CameraSpec] = Field(default_factory=dict, max_length=8)
    control: ControlConfig = ControlConfig()
    servo: ServoConfig = ServoConfig()
    guard: GuardLimits = GuardLimits()
    monitors: MonitorConfig = MonitorConfig()
    policy: PolicyConfig = PolicyConfig()
    store: StoreConfig = StoreConfig()
    remote: RemoteConfig = Field(default_factory=lambda: RemoteConfig(plaintext=True))
    fleet: FleetConfig | None = None
    health: HealthConfig | None = None
    realtime: RealtimeConfig = Field(
        default=RealtimeConfig(priority=20, lock_memory=True),
        description="what the bus processes ask of the kernel",
    )
    loop: RealtimeConfig = Field(
        default=RealtimeConfig(priority=10, nice=-10, lock_memory=True, prefault=False),
        description="what the control loop asks for its own thread, and with `nice` for the others beside it",
    )
    run_dir: Path = Field(default=Path("/run/ratchet"), description="rings and sockets live here")
