"""JPEGs whose markers promise more work than their pixels are refused before a decoder sees them."""

from __future__ import annotations

import contextlib
import io
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from protos.codec import CodecError, decode_image, encode_image, jpeg_size
from protos.jpeg import MOST_SEGMENTS, JpegError, check_scans
from protos.ratchet.v1 import common_pb2 as pb
from tools.hostile.scans import many_scans

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def _cv2(*options: int, picture: np.ndarray = PICTURE) -> bytes:
    return cv2.imencode(".jpg", picture, options)[1].tobytes()


def _pil(**options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, "JPEG", **options)
    return out.getvalue()


def _exif() -> bytes:
    """With a preview inside, which is a JPEG with markers of its own."""
    return b"Exif\0\0" + b"MM\0*" + b"\0\0\0\x08" + bytes(6) + _cv2()


def _scan_each(scans: int) -> bytes:
    """Three components, of which each scan holds one: put together from a grey picture's tables and data."""
    grey = _cv2(picture=PICTURE[:, :, 0])
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    size = grey[frame + 5 : frame + 9]
    three = b"\xff\xc0\x00\x11\x08" + size + b"\x03" + b"".join(bytes((c, 0x11, 0)) for c in (1, 2, 3))
    data = grey[:frame] + three + grey[frame + 13 : scan]
    for component in range(scans):
        data += b"\xff\xda\x00\x08\x01" + bytes((component % 3 + 1, 0, 0, 63, 0)) + grey[scan + 10 : -2]
    return data + b"\xff\xd9"


GOOD = {
    "ours": encode_image("front", PICTURE, jpeg_quality=90).data,
    "best": _cv2(cv2.IMWRITE_JPEG_QUALITY, 100),
    "restarts": _cv2(cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "own tables": _cv2(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "grey": _cv2(picture=PICTURE[:, :, 0]),
    "no subsampling": _pil(subsampling=0),
    "annotated": _pil(exif=_exif(), comment=b"\xff\xda" * 50, icc_profile=b"\xff\xd9" * 60_000),
    "a scan each": _scan_each(3),
    "filled": b"\xff\xd8" + b"\xff" * 20 + _cv2()[2:-2] + b"\xff" * 20 + b"\xff\xd9",
    "padded": _cv2() + bytes(4096),
}


@pytest.mark.parametrize("name", GOOD)
def test_real_jpegs_are_decoded(name: str):
    data = GOOD[name]
    message = pb.Image(camera="front", encoding=pb.IMAGE_ENCODING_JPEG, height=48, width=64, data=data)
    found = decode_image(message, 48, 64)
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(found, whole[:, :, ::-1])


def _between(extra: bytes) -> bytes:
    """Something between the tables and the scan."""
    data = _cv2()
    at = data.index(b"\xff\xda")
    return data[:at] + extra + data[at:]


BAD = {
    "many scans": (many_scans(48, 64, 50_000), "progressive"),
    "progressive": (_cv2(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "progressive"),
    "one scan more": (_scan_each(4), "more scans"),
    "a scan twice": (_cv2()[:-2] + _cv2()[_cv2().index(b"\xff\xda") :], "more scans"),
    "two frames": (_between(_cv2()[_cv2().index(b"\xff\xc0") :][:19]), "two frames"),
    "no end": (_cv2()[:-2], "no end"),
    "no scan": (_cv2()[: _cv2().index(b"\xff\xda")] + b"\xff\xd9", "no scan"),
    "garbage between": (_between(b"\0"), "no marker"),
    "restart between": (_between(b"\xff\xd0"), "no marker"),
    "reserved marker": (_between(b"\xff\x02\x00\x02"), "0x02"),
    "begun again": (_between(b"\xff\xd8\x00\x02"), "0xd8"),
    "height later": (_between(b"\xff\xdc\x00\x04\x00\x30"), "0xdc"),
    "empty segment": (_between(b"\xff\xfe\x00\x01"), "does not end"),
    "segment beyond": (_between(b"\xff\xfe\xff\xff"), "does not end"),
    "many segments": (_between(b"\xff\xfe\x00\x02" * MOST_SEGMENTS), "segments"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_cost_more_or_is_read_otherwise_by_the_decoder_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    data, why = BAD[name]
    assert jpeg_size(data) in ((48, 64), None)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    message = pb.Image(camera="front", encoding=pb.IMAGE_ENCODING_JPEG, height=48, width=64, data=data)
    with pytest.raises(CodecError) as caught:
        decode_image(message, 48, 64)
    assert "\n" not in str(caught.value)
    with pytest.raises(JpegError, match=why):
        check_scans(data)


@pytest.mark.parametrize(
    "stuffing",
    [
        b"\xff",
        b"\xff\x00",
        b"\xff\xd0",
        b"\xff\xd0\xff\xd1",
        b"\xff\xfe\x00\x02",
        b"\xff\xff\x00",
        b"\xff\xc4",
    ],
)
def test_no_bytes_make_the_walk_long(stuffing: bytes):
    size = 4 << 20
    head, scan = _between(b""), _cv2()
    for data in (
        b"\xff\xd8" + stuffing * (size // len(stuffing)),
        _between(stuffing * (size // len(stuffing))),
        head[:-2] + stuffing * (size // len(stuffing)) + scan[-2:],
    ):
        begin = time.process_time()
        jpeg_size(data)
        with contextlib.suppress(JpegError):
            check_scans(data)
        assert time.process_time() - begin < 0.5  # a loop over bytes takes several times that
