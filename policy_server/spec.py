"""What a request must look like, taken from a manifest, and the check of one against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_server.errors import RequestError
from protos.codec import CodecError, decode_image, decode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

#: Longest session name a client may send.
MAX_SESSION = 128


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


@dataclass(frozen=True, slots=True)
class Inputs:
    """A checked request: state float32 (S,), one uint8 RGB (H, W, 3) for each camera."""

    state: npt.NDArray[np.float32]
    images: dict[str, npt.NDArray[np.uint8]]


def check_request(request: pb.InferRequest, spec: IOSpec) -> Inputs:
    """Compare a request with the spec and decode it. Raises RequestError with a one-line reason."""
    if len(request.session) > MAX_SESSION:
        raise RequestError(f"session name has {len(request.session)} characters; at most {MAX_SESSION}")
    names = [image.camera for image in request.images]
    wanted = {camera.name: camera for camera in spec.cameras}
    if len(names) != len(wanted) or set(names) != set(wanted):
        shown = [name[:64] for name in names[:8]]
        raise RequestError(f"images are of cameras {shown}; exactly {sorted(wanted)} are needed")
    try:
        state = decode_tensor(request.state, "state", np.float32, (len(spec.state_names),))
        images = {
            image.camera: decode_image(image, wanted[image.camera].height, wanted[image.camera].width)
            for image in request.images
        }
    except CodecError as error:
        raise RequestError(str(error)) from error
    if not np.isfinite(state).all():
        raise RequestError("state has a NaN or an infinity; send measured joint values")
    return Inputs(state, images)


def _sizes(cameras: tuple[CameraSpec, ...]) -> tuple[str, ...]:
    return tuple(sorted(f"{camera.name} {camera.width}×{camera.height}" for camera in cameras))
