"""Each tick's pictures: the newest for whoever drives, and every one since the last tick to be recorded.

A camera that is a little faster than the loop, or a tick that comes late, leaves more than one new
picture in the ring. The policy wants the newest alone; the store wants them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hal.types import Frame
from runtime.loop_parts import FrameSource

MOST = 4  # of one camera in one tick; what a stall has left behind is worked off over the next ticks


@dataclass(frozen=True, slots=True)
class Pictures:
    """``newest`` fresh picture of each camera, and those ``to_record``, oldest first."""

    newest: dict[str, Frame]
    to_record: dict[str, list[Frame]]


class FrameTail:
    """Follows the cameras' rings; ``look`` once a tick."""

    def __init__(self, cameras: Mapping[str, FrameSource]) -> None:
        self._cameras = cameras
        self._seen: dict[str, int] = {}  # index of the last picture that was recorded

    def restart(self) -> None:
        """An episode begins: with the newest picture, not with those from before it."""
        self._seen.clear()

    def look(self, recording: bool) -> Pictures:
        """The newest pictures, and with ``recording`` up to ``MOST`` new ones of each camera."""
        newest: dict[str, Frame] = {}
        to_record: dict[str, list[Frame]] = {}
        if not recording:
            self._seen.clear()
        for name, camera in self._cameras.items():
            found = camera.newest()
            if found is None:
                continue
            index, frame = found
            if camera.fresh(frame):
                newest[name] = frame
            if recording:
                to_record[name] = self._since(name, camera, index, frame)
        return Pictures(newest, to_record)

    def _since(self, name: str, camera: FrameSource, index: int, frame: Frame) -> list[Frame]:
        """What was not recorded yet; what was overwritten meanwhile shows as a gap in the numbers."""
        seen = self._seen.get(name)
        if seen is None:
            if not camera.fresh(frame):
                return []
            self._seen[name] = index
            return [frame]
        first = max(seen + 1, index + 1 - camera.held)
        last = min(first + MOST - 1, index)
        older = [camera.read(i) for i in range(first, min(last, index - 1) + 1)]
        frames = [f for f in older if f is not None]
        if last == index and index > seen:
            frames.append(frame)
        self._seen[name] = max(seen, last)
        return frames
