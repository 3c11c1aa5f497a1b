"""Whether decoding a JPEG costs no more than its size says: judged by its markers, before it is decoded.

A scan of a progressive JPEG may be a dozen bytes, and each one has the decoder go over the whole picture:
a quarter of a megabyte at 640×480 keeps it busy for ten seconds. A sequential JPEG has a scan for all
components or one for each, so the work is bounded by its pixels and bytes. Cameras and our own encoder
make only those.

The walk must see what the decoder sees, so what libjpeg skips or guesses about (bytes between segments,
reserved markers, a missing end) is refused. Marker layout: ITU-T T.81, annex B.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Segments a JPEG may have: a colour profile and a preview are spread over dozens at most.
MOST_SEGMENTS = 256
_MOST_COMPONENTS = 4

_SOI = b"\xff\xd8"
_EOI, _SOS = 0xD9, 0xDA
_SEQUENTIAL = (0xC0, 0xC1)  # baseline and extended, Huffman-coded
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Huffman and quantisation tables, restart interval, comment, what applications add.
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})


class JpegError(ValueError):
    """A JPEG that is not decoded here: one line, why."""


def check_scans(data: bytes) -> None:
    """Raise JpegError unless ``data`` is a sequential 8-bit JPEG whose scans have each component once.

    Costs a few passes over the bytes, whatever they are. What stands behind the end is not looked at.
    """
    if data[:2] != _SOI:
        raise JpegError("it does not begin as one")
    marks = _marks(data)
    at, components, scanned, in_scan = 2, 0, 0, False
    for _ in range(MOST_SEGMENTS):
        index = int(np.searchsorted(marks, at))
        if index == len(marks):
            raise JpegError("it has no end")
        mark = int(marks[index])
        if not in_scan and data.count(b"\xff", at, mark) != mark - at:  # fill bytes are allowed
            raise JpegError(f"there is no marker at byte {at}")
        code = data[mark + 1]
        if code == _EOI:
            if not scanned:
                raise JpegError("it has no scan")
            return
        at = _end(data, mark)
        in_scan = code == _SOS
        if code in _SEQUENTIAL:
            if components:
                raise JpegError("it has two frames")
            components = _components(data, mark)
        elif in_scan:
            scanned += max(data[mark + 4], 1)
            if scanned > components:
                raise JpegError(f"it has more scans than its {components} components need")
        elif code in _OTHER_FRAMES:
            raise JpegError("it is progressive, lossless or arithmetic; send baseline JPEG")
        elif code not in _SKIPPED:
            raise JpegError(f"it has a marker {code:#04x}, which baseline JPEGs have not")
    raise JpegError(f"it has more than {MOST_SEGMENTS} segments")


def _marks(data: bytes) -> npt.NDArray[np.intp]:
    """Where 0xFF stands before a code that ends a scan: no stuffed zero, fill byte or restart."""
    values = np.frombuffer(data, dtype=np.uint8)
    code = values[1:]
    ends = (values[:-1] == 0xFF) & (code != 0x00) & (code != 0xFF) & ((code & 0xF8) != 0xD0)
    return np.flatnonzero(ends)


def _end(data: bytes, mark: int) -> int:
    """Where the segment ends whose marker stands at ``mark``."""
    length = int.from_bytes(data[mark + 2 : mark + 4], "big")
    end = mark + 2 + length
    if length < 2 or end > len(data):
        raise JpegError(f"the segment at byte {mark} does not end where it says")
    return end


def _components(data: bytes, mark: int) -> int:
    """Of the frame header at ``mark``."""
    header = data[mark + 2 : mark + 10]  # length (2), bits, height (2), width (2), components
    if len(header) < 8 or header[2] != 8 or not 1 <= header[7] <= _MOST_COMPONENTS:
        raise JpegError("its frame is not of 8 bits and one to four components")
    return header[7]
