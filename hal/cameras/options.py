"""What a camera may be asked to do with light, focus and format; None leaves it as the device has it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CameraOptions(BaseModel):
    """Applied when a camera is opened, and read back: a device that does otherwise is refused.

    ``exposure`` and ``gain`` are in the device's own units (V4L2: exposure in 100 µs; `v4l2-ctl -l`
    shows the ranges); a fixed exposure switches the automatic one off. A fixed exposure below the frame's
    period also keeps the rate in poor light.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["MJPG", "YUYV"] | None = Field(default=None, description="of the pixels; none: MJPG")
    auto_exposure: bool | None = None
    exposure: float | None = Field(default=None, gt=0.0, le=1e6)
    gain: float | None = Field(default=None, ge=0.0, le=1e6)
    white_balance: float | None = Field(default=None, gt=0.0, le=20_000.0, description="K; none: automatic")
    autofocus: bool | None = None
    focus: float | None = Field(default=None, ge=0.0, le=1e6)

    def asked(self) -> dict[str, str | float | bool]:
        """What is not left to the device, by name."""
        names = CameraOptions.model_fields
        return {name: value for name in names if (value := getattr(self, name)) is not None}
