"""The codec: what goes in comes out; what is not as expected never gets through."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.codec import CodecError, decode_image, decode_tensor, encode_image, encode_tensor, jpeg_size
from protos.ratchet.v1 import common_pb2 as pb

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "u1", "<i8", ">f4"])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 1, 4)])
def test_a_tensor_survives_the_wire(dtype: str, shape: tuple[int, ...]):
    array = (RNG.normal(size=shape) * 100).astype(dtype)
    message = pb.Tensor.FromString(encode_tensor(array).SerializeToString())
    back = decode_tensor(message, "x", array.dtype, shape)
    np.testing.assert_array_equal(back, array)
    back[...] = 0  # the caller's own


def test_a_view_that_is_not_contiguous_is_sent_as_it_looks():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(decode_tensor(encode_tensor(array), "x", "f4", (4, 3)), array)


def test_unsupported_dtypes_are_refused():
    with pytest.raises(CodecError, match="complex128"):
        encode_tensor(np.zeros(2, dtype=np.complex128))


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (pb.Tensor(dtype=1, shape=[2], data=bytes(7)), "7 bytes"),
        (pb.Tensor(dtype=1, shape=[2], data=bytes(9)), "9 bytes"),
        (pb.Tensor(dtype=2, shape=[2], data=bytes(16)), "float64"),
        (pb.Tensor(dtype=99, shape=[2], data=bytes(8)), "unspecified"),
        (pb.Tensor(dtype=1, shape=[2, 1], data=bytes(8)), "2 axes"),
        (pb.Tensor(dtype=1, shape=[0], data=b""), "shape"),
        (pb.Tensor(dtype=1, shape=[4_000_000_000], data=bytes(8)), "shape"),
        (pb.Tensor(), "unspecified"),
    ],
)
def test_a_tensor_that_is_not_as_expected_is_refused(message: pb.Tensor, word: str):
    with pytest.raises(CodecError, match=word):
        decode_tensor(message, "x", "f4", (None,))


@given(st.integers(0, 5), st.lists(st.integers(0, 2**32 - 1), max_size=6), st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_tensor_message_is_refused_or_well_formed(dtype: int, shape: list[int], data: bytes):
    message = pb.Tensor(dtype=dtype, shape=shape, data=data)
    try:
        array = decode_tensor(message, "x", "f4", (None, None))
    except CodecError:
        return
    assert array.dtype == np.float32
    assert array.nbytes == len(data)
    assert array.ndim == 2


def test_a_raw_image_survives_the_wire():
    image = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    message = encode_image("front", image, seq=4, t_ns=5)
    assert (message.camera, message.seq, message.t_ns) == ("front", 4, 5)
    np.testing.assert_array_equal(decode_image(message, 8, 6), image)


def test_a_jpeg_keeps_its_colours():
    image = np.zeros((16, 24, 3), dtype=np.uint8)
    image[:, :12] = (200, 30, 30)
    image[:, 12:] = (30, 30, 200)
    back = decode_image(encode_image("front", image, jpeg_quality=95), 16, 24).astype(int)
    assert np.abs(back[:, 2:10] - image[:, 2:10]).max() < 12
    assert np.abs(back[:, 14:22] - image[:, 14:22]).max() < 12


def test_what_is_no_picture_is_not_encoded():
    with pytest.raises(CodecError, match="float64"):
        encode_image("front", np.zeros((4, 4, 3)))
    with pytest.raises(CodecError, match="quality"):
        encode_image("front", np.zeros((4, 4, 3), dtype=np.uint8), jpeg_quality=101)


def _jpeg(height: int, width: int) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, dtype=np.uint8))[1].tobytes()


def test_the_size_in_a_jpegs_own_header_is_read():
    assert jpeg_size(_jpeg(48, 64)) == (48, 64)
    progressive = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[
        1
    ].tobytes()
    assert jpeg_size(progressive) == (20, 30)
    for data in (b"", b"\xff\xd8", b"\x89PNG", _jpeg(8, 8)[:30]):
        assert jpeg_size(data) is None


def test_a_jpeg_of_another_size_than_it_claims_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    message = pb.Image(camera="front", encoding=2, height=8, width=8, data=_jpeg(800, 800))
    with pytest.raises(CodecError, match="800"):
        decode_image(message, 8, 8)


def test_damaged_jpegs_are_refused_or_have_the_right_shape():
    whole = _jpeg(32, 32)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(RNG.integers(1, 4)):
            data[RNG.integers(2, len(data))] = RNG.integers(0, 256)
        cut = bytes(data[: RNG.integers(1, len(data) + 1)])
        try:
            image = decode_image(pb.Image(camera="c", encoding=2, height=32, width=32, data=cut), 32, 32)
        except CodecError:
            continue
        assert image.shape == (32, 32, 3)
