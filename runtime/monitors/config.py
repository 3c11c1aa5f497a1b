"""Limits of the monitors that need no calibration, and the window in which signals must agree."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Ticks = Annotated[int, Field(ge=1, le=3000)]
_Effort = Annotated[float, Field(gt=0.0, le=10.0)]


class MonitorConfig(BaseModel):
    """Ticks are control ticks (1/30 s); angles rad, effort A or fraction of full load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: A joint is off its goals when it is further than this from all of the last `tracking_lag_ticks` goals.
    tracking_limit_rad: float = Field(default=0.25, gt=0.0, le=3.2)
    tracking_lag_ticks: _Ticks = 6
    tracking_hold_ticks: _Ticks = 10

    #: Effort per joint above which a joint that stands still and is asked to move is stalled: the
    #: XL430s (shoulder) report a load fraction, the XL330s current in A. The gripper is left out: it
    #: presses on what it holds.
    stall_effort: tuple[_Effort, _Effort, _Effort, _Effort, _Effort] = (0.85, 0.85, 1.1, 1.1, 1.1)
    stall_velocity_rad_s: float = Field(default=0.06, gt=0.0, le=5.0)
    stall_distance_rad: float = Field(default=0.05, gt=0.0, le=3.2)
    stall_hold_ticks: _Ticks = 15

    #: Lost or corrupt replies within the window, or the age of a coasted sample, that raise a flag.
    lost_window_ticks: _Ticks = 30
    lost_limit: int = Field(default=6, ge=1, le=10_000)
    lost_age_ms: float = Field(default=50.0, gt=0.0, le=10_000.0)

    #: Help is asked for when, among the last `help_window` chunks, at least `help_count` disagreed
    #: with their predecessor and at least `help_count` were made from something unfamiliar.
    help_window: int = Field(default=4, ge=1, le=64)
    help_count: int = Field(default=2, ge=1, le=64)

    #: Two spans of one kind closer than this are one flag.
    merge_gap_ticks: _Ticks = 30
