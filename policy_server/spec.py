"""What a request must look like, taken from a manifest, and the check of one against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from policies.config import FeatureStats
from policy_server.errors import RequestError
from protos.codec import CodecError, decode_image, decode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

Pixels = npt.NDArray[np.uint8]

#: Longest session name a client may send.
MAX_SESSION = 128
#: Greatest state value there is, whatever its unit (rad, degrees, percent or a motor's steps).
MAX_STATE = 1e4
_MAX_FLAGS = 64
_USUAL_SD = 10.0
_USUAL_RAD = np.pi


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """One camera the policy looks through: uint8 RGB (height, width, 3)."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class IOSpec:
    """What goes in and comes out: two bundles with equal specs may follow one another in a running server."""

    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    rate_hz: float
    robot: str

    def difference(self, other: IOSpec) -> str | None:
        """In one line how ``other`` differs from this spec; None when it does not."""
        for what, mine, theirs in (
            ("robot", self.robot, other.robot),
            ("state", self.state_names, other.state_names),
            ("action", self.action_names, other.action_names),
            ("cameras", _sizes(self.cameras), _sizes(other.cameras)),
            ("rate_hz", self.rate_hz, other.rate_hz),
        ):
            if mine != theirs:
                return f"its {what} is {theirs}, not {mine}"
        return None


class Picture(Protocol):
    """A checked picture (H, W, 3), its ``shape``, that may still be somewhere else."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def copy_to(self, out: Pixels) -> None:
        """Copy it into ``out``, contiguous uint8 RGB (H, W, 3). Raises a ServerError when it is gone."""


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture that came in the message, decoded."""

    image: Pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Picture`."""
        return self.image.shape

    def copy_to(self, out: Pixels) -> None:
        """See `Picture.copy_to`."""
        np.copyto(out, self.image)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A checked request: state float32 (S,), one uint8 RGB (H, W, 3) for each camera."""

    state: npt.NDArray[np.float32]
    images: dict[str, Picture]


#: Finds a picture that is in shared memory, given the height and width it must have; raises a ServerError.
FindShared = Callable[[pb.SharedFrame, int, int], Picture]


def check_session(session: str) -> None:
    """Raise RequestError for a session name that is too long."""
    if len(session) > MAX_SESSION:
        raise RequestError(f"session name has {len(session)} characters; at most {MAX_SESSION}")


def check_report(request: pb.ReportRequest) -> None:
    """Raise RequestError for a report of an episode whose words are too many or too long."""
    check_session(request.session)
    if not 0 < len(request.episode) <= MAX_SESSION or len(request.version) > MAX_SESSION:
        raise RequestError(f"episode and version need a name of at most {MAX_SESSION} characters")
    if len(request.flags) > _MAX_FLAGS or any(len(flag) > MAX_SESSION for flag in request.flags):
        raise RequestError(f"more than {_MAX_FLAGS} flags, or one with a long name")


def check_request(request: pb.InferRequest, spec: IOSpec, find_shared: FindShared) -> Inputs:
    """Compare a request with the spec and decode it.

    Raises RequestError with a one-line reason, or what ``find_shared`` does.
    """
    names = [image.camera for image in request.images] + [frame.camera for frame in request.frames]
    wanted = {camera.name: camera for camera in spec.cameras}
    if len(names) != len(wanted) or set(names) != set(wanted):
        shown = [name[:64] for name in names[:8]]
        raise RequestError(f"images are of cameras {shown}; exactly {sorted(wanted)} are needed")
    images: dict[str, Picture] = {}
    try:
        state = decode_tensor(request.state, "state", np.float32, (len(spec.state_names),))
        for image in request.images:
            camera = wanted[image.camera]
            images[image.camera] = SentPicture(decode_image(image, camera.height, camera.width))
    except CodecError as error:
        raise RequestError(str(error)) from error
    for frame in request.frames:
        camera = wanted[frame.camera]
        images[frame.camera] = find_shared(frame, camera.height, camera.width)
    if not np.isfinite(state).all():
        raise RequestError("state has a NaN or an infinity; send measured joint values")
    if float(np.abs(state).max(initial=0.0)) > MAX_STATE:
        raise RequestError(f"state has a value beyond ±{MAX_STATE:.0f}; send measured joint values")
    return Inputs(state, images)


def is_usual(state: npt.NDArray[np.float32], seen: FeatureStats) -> bool:
    """Whether a bundle must know what to do with a state (S,), as the training data had it (``seen``).

    Within ten deviations or half a turn of the mean: a joint that hardly moved then may stand elsewhere now.
    """
    width = np.maximum(_USUAL_SD * np.asarray(seen.std), _USUAL_RAD)
    return bool((np.abs(state - np.asarray(seen.mean)) <= width).all())


def _sizes(cameras: tuple[CameraSpec, ...]) -> tuple[str, ...]:
    return tuple(sorted(f"{camera.name} {camera.width}×{camera.height}" for camera in cameras))
