"""Tensors and images on the wire: encoded, and decoded only after every bound has been checked.

A message from the network is not trusted: its size, dtype and shape are compared with what the
receiver expects before a byte of it is interpreted, and a JPEG's own header and scans before it is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.jpeg import MOST_SEGMENTS, JpegError, check_scans
from protos.ratchet.v1 import common_pb2 as pb

_DTYPES: dict[pb.DType, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT64: np.dtype("<f8"),
    pb.DTYPE_UINT8: np.dtype("u1"),
    pb.DTYPE_INT64: np.dtype("<i8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
#: Axes a tensor may have; a batch of images needs four.
MAX_AXES = 4


class CodecError(ValueError):
    """A tensor or image on the wire is not what the receiver expects: one line, which and how."""


def encode_tensor(array: npt.NDArray[Any]) -> pb.Tensor:
    """A tensor message, row-major little-endian. Raises CodecError for an unsupported dtype."""
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise CodecError(f"dtype {array.dtype} has no form on the wire; use {_names()}")
    data = np.ascontiguousarray(array, dtype=_DTYPES[code]).tobytes()
    return pb.Tensor(dtype=code, shape=array.shape, data=data)


def decode_tensor(
    message: pb.Tensor,
    name: str,
    dtype: npt.DTypeLike,
    shape: Sequence[int | None],
    max_axis: int = 1 << 16,
) -> npt.NDArray[Any]:
    """The array of a tensor message, owned by the caller.

    ``shape`` is what is expected; None stands for any length from 1 to ``max_axis``. Raises CodecError.
    """
    expected = np.dtype(dtype).newbyteorder("<")
    found = _DTYPES.get(message.dtype)
    if found != expected:
        raise CodecError(f"{name} has dtype {found or 'unspecified'}; {expected} is expected")
    if len(message.shape) > MAX_AXES or len(message.shape) != len(shape):
        raise CodecError(f"{name} has {len(message.shape)} axes; {len(shape)} are expected")
    actual = tuple(message.shape)
    for have, want in zip(actual, shape, strict=True):
        if have != want and (want is not None or not 1 <= have <= max_axis):
            wanted = tuple("any" if axis is None else axis for axis in shape)
            raise CodecError(f"{name} has shape {actual}; {wanted} is expected")
    size = math.prod(actual) * expected.itemsize
    if len(message.data) != size:
        raise CodecError(f"{name} has {len(message.data)} bytes; its shape and dtype make {size}")
    return np.frombuffer(message.data, dtype=expected).reshape(actual).copy()


def encode_image(
    camera: str,
    image: npt.NDArray[np.uint8],
    seq: int = 0,
    t_ns: int = 0,
    jpeg_quality: int | None = None,
) -> pb.Image:
    """An image message of uint8 RGB (H, W, 3): raw, or JPEG at a quality from 1 to 100.

    Raises CodecError when the array is not an RGB image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise CodecError(f"image {camera} is {image.dtype} {image.shape}; uint8 (H, W, 3) is needed")
    height, width = image.shape[:2]
    if jpeg_quality is None:
        encoding, data = pb.IMAGE_ENCODING_RGB8, image.tobytes()
    else:
        encoding, data = pb.IMAGE_ENCODING_JPEG, _jpeg(camera, image, jpeg_quality)
    return pb.Image(
        camera=camera, encoding=encoding, height=height, width=width, data=data, seq=seq, t_ns=t_ns
    )


def decode_image(message: pb.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The picture of an image message, uint8 RGB (H, W, 3), not writable; raises CodecError.

    Its stated size, and a JPEG's size by its own header, must be ``height`` × ``width``; a JPEG must be
    sequential, whole, and have each component in one scan (`check_scans`).
    """
    name = f"image {message.camera[:64]!r}"
    if (message.height, message.width) != (height, width):
        raise CodecError(f"{name} is {message.width}×{message.height}; {width}×{height} is expected")
    if message.encoding == pb.IMAGE_ENCODING_RGB8:
        if len(message.data) != height * width * 3:
            raise CodecError(f"{name} has {len(message.data)} bytes; {height * width * 3} are expected")
        return np.frombuffer(message.data, dtype=np.uint8).reshape(height, width, 3)
    if message.encoding == pb.IMAGE_ENCODING_JPEG:
        return _from_jpeg(name, message.data, height, width)
    raise CodecError(f"{name} has encoding {message.encoding}; RGB8 or JPEG is expected")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width by a JPEG's frame header, without decoding it; None when there is none.

    Marker layout: ITU-T T.81, annex B.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    for _ in range(MOST_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker in (0x01, 0xD9, 0xDA) or 0xD0 <= marker <= 0xD8:  # nothing more before the scan
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _from_jpeg(name: str, data: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    import cv2

    size = jpeg_size(data)
    if size != (height, width):
        raise CodecError(f"{name} is a JPEG of size {size}; {(height, width)} is expected")
    try:
        check_scans(data)
    except JpegError as error:
        raise CodecError(f"{name} is a JPEG that is not decoded: {error}") from error
    try:
        bgr = cv2.imdecode(
            np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise CodecError(f"{name} is a JPEG that cannot be decoded") from error
    if bgr is None or bgr.shape != (height, width, 3):
        raise CodecError(f"{name} is a JPEG that cannot be decoded to {width}×{height}")
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _jpeg(camera: str, image: npt.NDArray[np.uint8], quality: int) -> bytes:
    import cv2

    if not 1 <= quality <= 100:
        raise CodecError(f"JPEG quality {quality} for image {camera} is outside 1…100")
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise CodecError(f"image {camera} could not be encoded as JPEG")
    return bytes(data)


def _names() -> str:
    return ", ".join(str(dtype) for dtype in _DTYPES.values())
