"""Raw or JPEG: by what the way there was measured to carry."""

from __future__ import annotations

import numpy as np
import pytest

from hal.types import Frame
from protos.codec import CodecError
from runtime.pictures import PictureWire


def frames() -> list[Frame]:
    """Two pictures with the smoothness of pictures."""
    ramp = np.linspace(0, 255, 320, dtype=np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], 240, axis=0), 3, axis=2)
    return [Frame(name, 1, 1, image) for name in ("front", "wrist")]


def send(wire: PictureWire, bytes_per_s: float, times: int) -> None:
    """Requests over a way of that width; an empty message takes 2 ms, the server 10."""
    for _ in range(times):
        wire.beat(0.002)
        packed = wire.pack(frames())
        wire.sent(packed, 0.002 + packed.size / bytes_per_s + 0.010, 0.010)


def test_a_narrow_way_makes_jpegs_and_a_wide_one_takes_them_back():
    wire = PictureWire("auto")
    send(wire, 5e6, 40)
    assert wire.encoding == "jpeg"
    figures = wire.figures()
    assert figures.bytes_per_s == pytest.approx(5e6, rel=0.2)
    assert figures.jpeg_bytes < figures.raw_bytes / 5
    send(wire, 5e9, 200)
    assert wire.encoding == "raw"
    assert wire.figures().switches == 2


def test_a_wide_way_is_never_even_tried_with_jpeg():
    wire = PictureWire("auto")
    send(wire, 2e9, 300)
    assert wire.encoding == "raw"
    assert wire.figures().jpeg_bytes == 0


def test_one_slow_answer_changes_nothing():
    wire = PictureWire("auto")
    send(wire, 1e9, 50)
    send(wire, 1e6, 1)
    send(wire, 1e9, 50)
    assert (wire.encoding, wire.figures().switches) == ("raw", 0)


def test_a_choice_is_kept():
    for choice in ("raw", "jpeg"):
        wire = PictureWire(choice)
        send(wire, 1e6 if choice == "raw" else 1e10, 40)
        assert wire.encoding == choice


def test_what_is_no_picture_is_refused():
    with pytest.raises(CodecError):
        PictureWire("raw").pack([Frame("front", 1, 1, np.zeros((4, 4), np.uint8))])
