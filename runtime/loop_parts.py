"""What the control loop needs of its arm, its cameras and its policy."""

from __future__ import annotations

from typing import Protocol

from hal.types import Frame
from runtime.bus_handle import BusSample
from runtime.nouns import ActionChunk, Observation, Waypoint


class Arm(Protocol):
    """What the loop needs of a bus process: its newest sample, and where waypoints go."""

    def latest(self) -> BusSample | None: ...

    def since(self, index: int) -> list[BusSample]: ...

    def command(self, waypoint: Waypoint) -> None: ...


class FrameSource(Protocol):
    """The frames of one camera, by the index at which it published them."""

    @property
    def held(self) -> int:
        """How many of the last ones can still be read."""

    def latest(self) -> Frame | None:
        """The newest if it is fresh."""

    def newest(self) -> tuple[int, Frame] | None:
        """The newest however old, and its index."""

    def read(self, index: int) -> Frame | None:
        """That one, or None when it was overwritten."""

    def fresh(self, frame: Frame) -> bool:
        """Whether a policy may still drive by it."""


class ChunkSource(Protocol):
    """Where action chunks come from; nothing here waits or raises (the policy client)."""

    @property
    def round_trip_s(self) -> float | None: ...

    def begin(self, observation: Observation) -> bool: ...

    def take(self) -> ActionChunk | None: ...
