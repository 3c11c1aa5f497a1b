"""JPEGs as they came over the wire: whole or torn, and their pixels.

FFmpeg and libjpeg both make a picture of half a JPEG, grey or smeared where data is missing, and say
nothing to who asked for it. A torn picture must not pass for a good one, so the packet itself is looked at.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from hal.types import Image

_BEGIN = b"\xff\xd8"
_END = b"\xff\xd9"
_PADDING = 4096


def decode_whole(packet: npt.NDArray[np.uint8]) -> Image | None:
    """The picture in ``packet``, uint8 (n,), as RGB (H, W, 3); None when it does not end as a JPEG ends.

    Zeros behind the end are allowed: some cameras pad.
    """
    tail = packet[-_PADDING:].tobytes().rstrip(b"\0")
    if packet[:2].tobytes() != _BEGIN or not tail.endswith(_END):
        return None
    bgr = cv2.imdecode(packet, cv2.IMREAD_COLOR)
    if bgr is None:
        return None
    image: Image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return image
