"""What an ACT network looks like: shapes and sizes, frozen and bounded.

Free of torch, so that a manifest can be read where no torch is installed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NORM_EPS = 1e-8
"""Added to the standard deviation when normalising, as LeRobot does (not when restoring)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Backbone = Literal["resnet18", "efficientnet_lite0"]
RESNET18_WIDTH = 64
RESNET18_BLOCKS = 2

Dim = Annotated[int, Field(ge=1, le=4096)]
Pixels = Annotated[int, Field(ge=32, le=4096)]
CameraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]


class CameraShape(BaseModel):
    """A camera by name, with the size of its pictures in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: CameraName
    height: Pixels
    width: Pixels


class ACTConfig(BaseModel):
    """Architecture of an Action Chunking Transformer (Zhao et al. 2023, arXiv:2304.13705).

    Field names follow the paper; defaults are those of LeRobot 0.4.4. ``cameras`` gives the size
    that arrives from the camera; ``resize`` (height, width), when set, is what it is scaled to, and ``crop``
    the part in the middle that the network sees.
    ``execute`` is how many actions of a chunk are meant to be played before the next one.
    ``backbone_width`` w makes a ResNet of w-2w-4w-8w channels, ``backbone_blocks`` per stage (2 is
    ResNet-18, 1 is ResNet-10); EfficientNet-Lite0 comes in one size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dim: Dim = 6
    action_dim: Dim = 6
    cameras: tuple[CameraShape, ...] = Field(min_length=1, max_length=8)
    resize: tuple[Pixels, Pixels] | None = None
    crop: tuple[Pixels, Pixels] | None = None
    chunk: int = Field(default=100, ge=1, le=1024)
    execute: int = Field(default=100, ge=1, le=1024)
    dim: int = Field(default=512, ge=8, le=4096, multiple_of=4)
    heads: int = Field(default=8, ge=1, le=64)
    ffn: int = Field(default=3200, ge=8, le=16384)
    encoder_layers: int = Field(default=4, ge=1, le=24)
    decoder_layers: int = Field(default=1, ge=1, le=24)
    vae_layers: int = Field(default=4, ge=1, le=24)
    latent: int = Field(default=32, ge=1, le=1024)
    use_vae: bool = True
    kl_weight: float = Field(default=10.0, ge=0.0, le=1e4)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    pre_norm: bool = False
    activation: Literal["relu", "gelu"] = "relu"
    backbone: Backbone = "resnet18"
    backbone_width: int = Field(default=RESNET18_WIDTH, ge=8, le=256, multiple_of=8)
    backbone_blocks: int = Field(default=RESNET18_BLOCKS, ge=1, le=2)
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    backbone_per_camera: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.execute > self.chunk:
            raise ValueError(f"execute {self.execute} is more than the chunk {self.chunk} holds")
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"camera names repeat: {names}")
        if self.crop is not None:
            for camera in self.cameras:
                height, width = self.resize or (camera.height, camera.width)
                if self.crop[0] > height or self.crop[1] > width:
                    raise ValueError(
                        f"crop {self.crop} is larger than the {height}×{width} picture of {camera.name!r}"
                    )
        if self.backbone != "resnet18" and not self.published_size:
            raise ValueError(
                f"{self.backbone} has one size, and backbone_width {self.backbone_width} with "
                f"backbone_blocks {self.backbone_blocks} is one of a ResNet; leave them out"
            )
        return self

    @property
    def published_size(self) -> bool:
        """Whether the backbone has the size it was published in, which is what pretrained weights have."""
        return (self.backbone_width, self.backbone_blocks) == (RESNET18_WIDTH, RESNET18_BLOCKS)

    def image_size(self, camera: CameraShape) -> tuple[int, int]:
        """(height, width) of ``camera``'s picture as the network sees it."""
        if self.crop is not None:
            return self.crop
        return self.resize if self.resize is not None else (camera.height, camera.width)

    def feature_size(self, camera: CameraShape) -> tuple[int, int]:
        """(height, width) of the backbone's last feature map: five halvings, each rounded up."""
        height, width = self.image_size(camera)
        return -(-height // 32), -(-width // 32)


DEMO_CAMERAS = (
    CameraShape(name="front", height=96, width=96),
    CameraShape(name="wrist", height=96, width=96),
)
FULL_CAMERAS = (
    CameraShape(name="front", height=480, width=640),
    CameraShape(name="wrist", height=480, width=640),
)


def act_full(
    cameras: tuple[CameraShape, ...] = FULL_CAMERAS, state_dim: int = 6, action_dim: int = 6
) -> ACTConfig:
    """The published network as LeRobot trains it: 51,597,190 learnable values for 6 joints."""
    return ACTConfig(cameras=cameras, state_dim=state_dim, action_dim=action_dim)


def act_small(
    cameras: tuple[CameraShape, ...] = DEMO_CAMERAS, state_dim: int = 6, action_dim: int = 6
) -> ACTConfig:
    """The demo's network, 8.06 M learnable values with its two backbones and the VAE encoder.

    A ResNet of half width per camera with batch norm (nothing pretrained to freeze), two encoder
    layers and one decoder layer of 256, chunks of 32 of which 16 are played.
    """
    return ACTConfig(
        cameras=cameras,
        state_dim=state_dim,
        action_dim=action_dim,
        chunk=32,
        execute=16,
        dim=256,
        ffn=512,
        encoder_layers=2,
        decoder_layers=1,
        vae_layers=1,
        latent=8,
        kl_weight=10.0,
        dropout=0.0,
        backbone_width=32,
        backbone_norm="batch",
        backbone_per_camera=True,
    )


def _finite(values: tuple[float, ...]) -> bool:
    return all(abs(value) < 1e12 for value in values)


class FeatureStats(BaseModel):
    """Mean and standard deviation of one feature, per dimension (per channel for images)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...] = Field(min_length=1, max_length=4096)
    std: tuple[float, ...] = Field(min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values, std {len(self.std)}")
        if not _finite(self.mean) or not _finite(self.std):
            raise ValueError("a mean or std is not finite")
        if min(self.std) < 0.0:
            raise ValueError("a std is negative")
        return self


class NormStats(BaseModel):
    """Statistics a policy was trained with: ``normalised = (raw - mean) / (std + 1e-8)``.

    ``state`` and ``action`` are in raw units (rad); ``images`` by camera name, of RGB in 0…1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: FeatureStats
    action: FeatureStats
    images: dict[CameraName, FeatureStats]

    def check(self, config: ACTConfig) -> None:
        """Raise ValueError unless these statistics fit ``config``'s dimensions and cameras."""
        if len(self.state.mean) != config.state_dim:
            raise ValueError(f"state statistics have {len(self.state.mean)} dims, not {config.state_dim}")
        if len(self.action.mean) != config.action_dim:
            raise ValueError(f"action statistics have {len(self.action.mean)} dims, not {config.action_dim}")
        for camera in config.cameras:
            stats = self.images.get(camera.name)
            if stats is None or len(stats.mean) != 3:
                raise ValueError(f"no RGB statistics for camera {camera.name!r}")
