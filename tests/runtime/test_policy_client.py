"""The policy client against a server that does what a test tells it to, over a real socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from hal.types import Frame
from protos.codec import decode_image, decode_tensor, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from runtime.chunks import ChunkPlayer
from runtime.nouns import ActionChunk
from runtime.policy_client import PolicyClient
from runtime.policy_types import (
    PolicyClientError,
    PolicyRefusedError,
    PolicyReplyError,
    PolicyTimeoutError,
    PolicyUnavailableError,
)
from tests.runtime.scripted_policy import Bench, Spoil, observe
from tests.runtime.waiting import eventually


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="pc") as folder:
        bench = Bench(folder)
        await bench.start()
        yield bench
        await bench.client.close()
        await bench.stop()


async def test_an_observation_becomes_a_chunk_and_only_the_wanted_cameras_travel(bench: Bench):
    chunk = await bench.client.infer(observe(42))
    assert (chunk.start_tick, chunk.obs_t_ns, chunk.version, chunk.epoch) == (42, 1042, "abc", 1)
    assert chunk.actions.shape == (8, 6)
    assert chunk.features is not None
    assert chunk.features.shape == (4,)
    (request,) = bench.service.requests
    assert [image.camera for image in request.images] == ["front"]
    assert decode_image(request.images[0], 4, 6)[0, 0, 0] == 7
    np.testing.assert_allclose(decode_tensor(request.state, "state", "f4", (6,)), 0.1, rtol=1e-6)
    assert ChunkPlayer(4).offer(chunk, 43)


async def test_pictures_travel_as_jpeg_by_choice(bench: Bench):
    client = PolicyClient(bench.address, timeout_s=2.0, pictures="jpeg")
    await client.infer(observe(1))
    await client.close()
    assert bench.service.requests[0].images[0].data[:2] == b"\xff\xd8"


def _nan(response: pb.InferResponse) -> None:
    response.actions.data = np.full((8, 6), np.nan, dtype=np.float32).tobytes()


def _joints(response: pb.InferResponse) -> None:
    response.actions.CopyFrom(encode_tensor(np.ones((8, 7), dtype=np.float32)))


def _long(response: pb.InferResponse) -> None:
    response.actions.CopyFrom(encode_tensor(np.ones((2000, 6), dtype=np.float32)))


def _short(response: pb.InferResponse) -> None:
    response.actions.data = response.actions.data[:-4]


def _features(response: pb.InferResponse) -> None:
    response.features.dtype = 3


def _infinite(response: pb.InferResponse) -> None:
    response.features.CopyFrom(encode_tensor(np.full(4, np.inf, dtype=np.float32)))


def _tick(response: pb.InferResponse) -> None:
    response.tick += 1


def _id(response: pb.InferResponse) -> None:
    response.request_id += 1


@pytest.mark.parametrize("spoil", [_nan, _joints, _long, _short, _features, _infinite, _tick, _id])
async def test_an_answer_that_cannot_be_trusted_is_not_a_chunk(bench: Bench, spoil: Spoil):
    bench.service.spoil = spoil
    with pytest.raises(PolicyReplyError):
        await bench.client.infer(observe(1))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, PolicyRefusedError),
        (grpc.StatusCode.FAILED_PRECONDITION, PolicyRefusedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, PolicyUnavailableError),
        (grpc.StatusCode.UNAVAILABLE, PolicyUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, PolicyTimeoutError),
        (grpc.StatusCode.INTERNAL, PolicyReplyError),
        (grpc.StatusCode.UNKNOWN, PolicyReplyError),
    ],
)
async def test_statuses_become_typed_errors_in_one_line(
    bench: Bench, code: grpc.StatusCode, kind: type[PolicyClientError]
):
    bench.service.refusal = (code, "the reason")
    with pytest.raises(kind) as caught:
        await bench.client.infer(observe(1))
    assert "\n" not in str(caught.value)
    if kind is not PolicyTimeoutError:
        assert "the reason" in str(caught.value)


async def test_every_inference_has_a_deadline(bench: Bench):
    client = PolicyClient(bench.address, timeout_s=0.2)
    bench.service.delay_s = 30.0
    with pytest.raises(PolicyTimeoutError):
        await asyncio.wait_for(client.infer(observe(1)), 10)
    await client.close()


async def test_a_camera_without_a_picture_is_named_and_nothing_is_sent(bench: Bench):
    with pytest.raises(PolicyClientError, match="front"):
        await bench.client.infer(observe(1, cameras=("wrist",)))
    assert bench.service.requests == []


async def test_a_server_without_a_bundle_is_unavailable(bench: Bench):
    bench.service.cameras = []
    with pytest.raises(PolicyUnavailableError, match="no bundle"):
        await bench.client.infer(observe(1))


async def test_the_loop_never_waits_and_never_sends_two_at_once(bench: Bench):
    bench.service.delay_s = 0.3
    assert bench.client.begin(observe(5))
    assert not bench.client.begin(observe(6))
    assert bench.client.in_flight
    assert bench.client.take() is None
    await asyncio.sleep(1.0)
    chunk = bench.client.take()
    assert chunk is not None
    assert chunk.start_tick == 5
    assert bench.client.take() is None
    assert bench.client.begin(observe(7))


async def test_a_gone_server_is_left_alone_for_a_while_then_found_again(bench: Bench):
    await bench.until(lambda: bench.client.last_error is None and bench.service.requests != [])
    await bench.stop()
    await bench.until(lambda: bench.client.failures >= 3)
    assert isinstance(bench.client.last_error, PolicyUnavailableError)
    assert not bench.client.begin(observe(1)), "backs off after a failure"
    await bench.start()
    seen = len(bench.service.requests)
    await bench.until(lambda: len(bench.service.requests) > seen and bench.client.last_error is None)


async def test_a_frame_that_is_no_picture_is_named(bench: Bench):
    observation = observe(2)
    observation.frames["front"] = Frame("front", 1, 1, np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(PolicyClientError, match="front"):
        await bench.client.infer(observation)


async def test_failures_never_raise_into_the_loop_not_even_bugs(bench: Bench):
    await bench.client.infer(observe(1))
    assert bench.client.begin(replace(observe(2), joints=None))  # type: ignore[arg-type]
    await asyncio.sleep(0.2)
    assert bench.client.take() is None
    assert bench.client.failures == 1
    assert isinstance(bench.client.last_error, AttributeError)


async def test_the_epoch_never_falls_when_the_server_counts_afresh(bench: Bench):
    epochs = []
    for epoch in (1, 2, 5, 1, 1, 2, 1):
        bench.service.epoch = epoch
        epochs.append((await bench.client.infer(observe(1))).epoch)
    assert epochs == [1, 2, 5, 6, 6, 7, 8]


async def test_another_policys_cameras_are_learnt_after_a_refusal(bench: Bench):
    await bench.client.infer(observe(1))
    bench.service.cameras = ["front", "wrist"]
    bench.service.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "images")
    with pytest.raises(PolicyRefusedError):
        await bench.client.infer(observe(2))
    bench.service.refusal = None
    await bench.client.infer(observe(3))
    assert [image.camera for image in bench.service.requests[-1].images] == ["front", "wrist"]


async def test_status_and_swap(bench: Bench):
    status = await bench.client.status(manifests=True)
    assert status.active is not None
    assert (status.active.version, status.active.manifest) == ("abc", {"monitors": None})
    swapped = await bench.client.swap("def")
    assert (swapped.version, swapped.previous, swapped.epoch) == ("def", "abc", 2)
    with pytest.raises(PolicyRefusedError, match="not loaded"):
        await bench.client.swap("ghi")


class Wedge:
    """A way to a server whose connections, once ``stuck``, stay open and carry nothing any more."""

    def __init__(self, folder: str, target: str) -> None:
        self.address = f"unix:{folder}/w"
        self._target = target
        self._stuck: set[int] = set()
        self.connections = 0

    async def __aenter__(self) -> Wedge:
        self._server = await asyncio.start_unix_server(self._join, self.address.removeprefix("unix:"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def stick(self) -> None:
        """From now on the connections made so far swallow everything."""
        self._stuck = set(range(1, self.connections + 1))

    async def _join(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        server, out = await asyncio.open_unix_connection(self._target.removeprefix("unix:"))
        await asyncio.gather(self._carry(number, client, out), self._carry(number, server, back))

    async def _carry(self, number: int, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if number not in self._stuck:
                to.write(data)
        to.close()


async def test_a_connection_that_is_open_and_dead_is_given_up(bench: Bench, tmp_path: Path):
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        async with Wedge(folder, bench.address) as wedge:
            await bench.client.close()
            bench.client = PolicyClient(wedge.address, timeout_s=0.2)
            await bench.client.infer(observe(1))
            wedge.stick()
            await bench.until(lambda: bench.client.failures > 0)
            served = len(bench.service.requests)
            await bench.until(
                lambda: bench.client.last_error is None and len(bench.service.requests) > served
            )
            assert wedge.connections > 1
            await bench.client.close()


async def test_closing_gives_up_what_is_under_way(bench: Bench):
    bench.service.delay_s = 30.0
    bench.client.begin(observe(1))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(bench.client.close(), 5)
    await bench.client.close()
    assert not bench.client.in_flight


def test_the_client_needs_no_torch():
    modules = "runtime.policy_client, runtime.monitors, runtime.chunks"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


async def test_a_dead_connection_is_noticed_although_nothing_is_asked(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        async with Wedge(folder, bench.address) as wedge:
            client = PolicyClient(wedge.address, timeout_s=0.2)
            await client.infer(observe(1))
            wedge.stick()
            beating = asyncio.create_task(client.heartbeat())
            await eventually(lambda: client.failures > 0)
            assert isinstance(client.last_error, PolicyTimeoutError)
            beating.cancel()
            await client.close()


async def test_an_overdue_answer_is_asked_for_again_and_the_newer_one_counts(bench: Bench) -> None:
    for tick in range(12):
        assert bench.client.begin(observe(tick))
        await eventually(lambda: bench.client.take() is not None)
    bench.service.delay_s = 30.0
    assert bench.client.begin(observe(20))
    await asyncio.sleep(0.05)
    bench.service.delay_s = 0.0
    chunks: list[ActionChunk] = []
    await eventually(lambda: bench.client.begin(observe(21)))
    await eventually(lambda: chunks.extend(filter(None, [bench.client.take()])) or bool(chunks))
    assert chunks[0].start_tick == 21
    assert bench.client.failures == 0
    assert not bench.client.in_flight
