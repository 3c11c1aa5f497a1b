"""Messages nobody sends in good faith: each a function of a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from protos.codec import encode_image, encode_tensor
from protos.ratchet.v1 import common_pb2
from protos.ratchet.v1 import policy_pb2 as pb
from tools.hostile.scans import many_scans

PREFIX = "/ratchet.v1.PolicyService/"
HUGE = 2**32 - 1
_WORDS = ("", "front", "wrist", "../front", "\x00", "x" * 300, "/etc/passwd", "a/../../b", "é" * 200, "%s%n")

_DTYPES = (
    common_pb2.DTYPE_UNSPECIFIED,
    common_pb2.DTYPE_FLOAT64,
    common_pb2.DTYPE_UINT8,
    common_pb2.DTYPE_INT64,
)

#: A call: the method's full name, and the bytes of its request.
Call = tuple[str, bytes]


def sound(rng: random.Random, size: int = 96, jpeg_quality: int | None = None) -> pb.InferRequest:
    """A well-formed request of the demo's network: six joints, two square pictures, raw or JPEG."""
    noise = np.random.default_rng(rng.randrange(2**32))
    images = [
        encode_image(
            name, noise.integers(0, 256, (size, size, 3), dtype=np.uint8), 1, 1, jpeg_quality=jpeg_quality
        )
        for name in ("front", "wrist")
    ]
    return pb.InferRequest(
        request_id=1,
        session=rng.choice(_WORDS)[:64],
        tick=1,
        observation_ns=1,
        state=encode_tensor(np.zeros(6, np.float32)),
        images=images,
    )


def random_bytes(rng: random.Random, base: pb.InferRequest) -> Call:
    """Bytes that are no message, for any method there is or is not."""
    method = rng.choice(("Infer", "Load", "Swap", "Status", "Report", "Shadow", "Rollback", "Nothing"))
    return PREFIX + method, rng.randbytes(rng.choice((1, 10, 100, 1000, 20_000)))


def flipped(rng: random.Random, base: pb.InferRequest) -> Call:
    """A sound request with some of its first bytes changed."""
    data = bytearray(base.SerializeToString())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
    return PREFIX + "Infer", bytes(data)


def wrong_shapes(rng: random.Random, base: pb.InferRequest) -> Call:
    """Tensors whose shape, type and bytes do not go together."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    request.state.shape[:] = [rng.choice((0, 1, 5, 6, 7, HUGE)) for _ in range(rng.randrange(1, 9))]
    request.state.dtype = rng.choice(_DTYPES)
    image = rng.choice(request.images)
    image.height, image.width = rng.choice(((0, 0), (HUGE, HUGE), (96, 95), (2**31, 1), (1, 96 * 96)))
    return PREFIX + "Infer", request.SerializeToString()


def changed_fields(rng: random.Random, base: pb.InferRequest) -> Call:
    """One to three fields are something else of the same type, often off by one from what is right."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    for _ in range(rng.randint(1, 3)):
        _change(rng, request)
    return PREFIX + "Infer", request.SerializeToString()


def _change(rng: random.Random, request: pb.InferRequest) -> None:
    image = request.images[rng.randrange(len(request.images))] if request.images else None
    choice = rng.randrange(10)
    if choice == 0:
        request.state.dtype = rng.randrange(0, 6)  # type: ignore[assignment]
    elif choice == 1:
        request.state.shape[:] = [rng.choice([0, 1, 6, HUGE]) for _ in range(rng.randrange(6))]
    elif choice == 2:
        request.state.data = rng.randbytes(rng.choice([0, 1, 23, 24, 25, 4096]))
    elif choice == 3:
        request.session = "\u00e9" * rng.choice([0, 127, 128, 129, 5000])
    elif image is None or choice == 4:
        request.images.add(camera=rng.choice(["front", "wrist", "", "x" * 300]))
    elif choice == 5:
        right = (image.height, image.width)
        image.height, image.width = rng.choice(
            [(0, 0), (2**31, 2**31), (right[0], max(0, right[1] - 1)), right]
        )
    elif choice == 6:
        size = len(image.data)
        image.data = rng.randbytes(rng.choice([0, 10, max(0, size - 1), size, size + 1]))
    elif choice == 7:
        image.encoding = rng.randrange(0, 5)  # type: ignore[assignment]
    elif choice == 8:
        image.camera = rng.choice(["front", "wrist", "\x00", "../front"])
    else:
        request.images.remove(image)


def huge_tensor(rng: random.Random, base: pb.InferRequest) -> Call:
    """Megabytes where a few bytes belong; some beyond what a message may have."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    request.state.data = bytes(rng.choice((1 << 20, 4 << 20, 17 << 20)))
    request.state.shape[:] = [len(request.state.data) // 4]
    return PREFIX + "Infer", request.SerializeToString()


def not_finite(rng: random.Random, base: pb.InferRequest) -> Call:
    """NaN and infinities for joints."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    values = np.array([rng.choice((np.nan, np.inf, -np.inf, 1e38)) for _ in range(6)], np.float32)
    request.state.CopyFrom(encode_tensor(values))
    return PREFIX + "Infer", request.SerializeToString()


def false_pictures(rng: random.Random, base: pb.InferRequest) -> Call:
    """JPEGs that are none, that lie about their size, and cameras nobody has."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    image = rng.choice(request.images)
    image.encoding = common_pb2.IMAGE_ENCODING_JPEG
    head = b"\xff\xd8\xff\xc0\x00\x11\x08" + rng.choice((b"\x00\x60\x00\x60", b"\xff\xff\xff\xff"))
    image.data = rng.choice((b"", b"\xff\xd8", head + rng.randbytes(500), rng.randbytes(3000)))
    if rng.random() < 0.3:
        request.images.add(camera=rng.choice(_WORDS))
    return PREFIX + "Infer", request.SerializeToString()


def laborious_pictures(rng: random.Random, base: pb.InferRequest) -> Call:
    """JPEGs of the right size that would be a hundred times the work of others, were they decoded."""
    request = pb.InferRequest()
    request.CopyFrom(base)
    request.session = f"laborious-{rng.randrange(16)}"  # one session's would be refused for their number
    for image in request.images:
        image.encoding = common_pb2.IMAGE_ENCODING_JPEG
        image.data = many_scans(image.height, image.width, rng.choice((100, 6000, 6000)))
    return PREFIX + "Infer", request.SerializeToString()


def false_frames(rng: random.Random, base: pb.InferRequest) -> Call:
    """References into shared memory that is not the caller's, or is not there."""
    request = pb.InferRequest(session=base.session, state=base.state, lane=rng.randrange(2**64))
    for name in ("front", "wrist"):
        frame = request.frames.add(camera=name, slot=rng.choice((0, 1, HUGE)), word=rng.randrange(2**64))
        frame.height, frame.width = rng.choice(((96, 96), (HUGE, HUGE)))
    return PREFIX + "Infer", request.SerializeToString()


def bundles_from_anywhere(rng: random.Random, base: pb.InferRequest) -> Call:
    """Loads, swaps and shadows of what must not be touched."""
    word = "".join(rng.choice("/.\x00a%~é") for _ in range(rng.randrange(400)))
    path = rng.choice((word, "/", "/proc/self/mem", "/dev/zero", "../" * 40, rng.choice(_WORDS)))
    kind = rng.randrange(4)
    if kind == 0:
        return PREFIX + "Load", pb.LoadRequest(path=path, backend=word[:5], activate=True).SerializeToString()
    if kind == 1:
        return PREFIX + "Swap", pb.SwapRequest(version=word).SerializeToString()
    if kind == 2:
        shadow = pb.ShadowRequest(bundle=path, seconds=rng.choice((0.0, -1.0, float("nan"), 1e300)))
        return PREFIX + "Shadow", shadow.SerializeToString()
    report = pb.ReportRequest(session=word, episode=word, version=word, epoch=2**63, failed=True)
    report.flags.extend(word[:50] for _ in range(rng.choice((0, 3, 2000))))
    return PREFIX + "Report", report.SerializeToString()


#: What is sent, and how large a part of all calls it is.
MESSAGES: dict[str, tuple[Callable[[random.Random, pb.InferRequest], Call], float]] = {
    "random_bytes": (random_bytes, 0.20),
    "flipped_bits": (flipped, 0.20),
    "wrong_shapes": (wrong_shapes, 0.15),
    "changed_fields": (changed_fields, 0.05),
    "huge_tensors": (huge_tensor, 0.005),
    "not_finite": (not_finite, 0.10),
    "false_pictures": (false_pictures, 0.10),
    "laborious_pictures": (laborious_pictures, 0.05),
    "false_frames": (false_frames, 0.095),
    "bundles": (bundles_from_anywhere, 0.05),
}
