"""A policy server that does what a test tells it to, over a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hal.types import Frame, JointState
from protos.codec import encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from runtime.nouns import Observation
from runtime.policy_client import PolicyClient

Spoil = Callable[[pb.InferResponse], None]


class Scripted(policy_pb2_grpc.PolicyServiceServicer):
    """Answers with ones; `spoil` changes the answer, `delay_s` and `refusal` do what they say."""

    def __init__(self) -> None:
        self.requests: list[pb.InferRequest] = []
        self.version = "abc"
        self.cameras = ["front"]
        self.epoch = 1
        self.delay_s = 0.0
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.spoil: Spoil | None = None

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        response = pb.InferResponse(
            request_id=request.request_id,
            tick=request.tick,
            actions=encode_tensor(np.ones((8, 6), dtype=np.float32)),
            features=encode_tensor(np.zeros(4, dtype=np.float32)),
            version=self.version,
            epoch=self.epoch,
            exec_ms=1.5,
        )
        if self.spoil is not None:
            self.spoil(response)
        return response

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        slots = (
            [pb.Slot(version=self.version, active=True, chunk=8, cameras=self.cameras)]
            if self.cameras
            else []
        )
        if request.manifests and slots:
            slots[0].manifest_json = '{"monitors": null}'
        return pb.StatusResponse(slots=slots, epoch=self.epoch, served=len(self.requests))

    async def Swap(self, request: pb.SwapRequest, context: Any) -> pb.SwapResponse:
        if request.version != "def":
            await context.abort(grpc.StatusCode.NOT_FOUND, "bundle is not loaded; load it first")
        return pb.SwapResponse(version="def", previous="abc", epoch=self.epoch + 1, swap_ms=0.1)


class Health(health_pb2_grpc.HealthServicer):
    """Says it serves while a scripted server has a policy."""

    def __init__(self, service: Scripted) -> None:
        self._service = service

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        serving = bool(self._service.cameras)
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if serving else response.NOT_SERVING)


class Bench:
    """A scripted server that can be stopped and started again at the same address, and a client."""

    def __init__(self, folder: str) -> None:
        self.address = f"unix:{folder}/s"
        self.service = Scripted()
        self.client = PolicyClient(self.address, timeout_s=2.0)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(Health(self.service), self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def until(self, done: Callable[[], bool], tick: int = 0) -> None:
        """Run the loop's side of things until something holds."""
        end = time.monotonic() + 20
        while not done():
            assert time.monotonic() < end, f"never came; last error {self.client.last_error}"
            self.client.begin(observe(tick))
            await asyncio.sleep(0.01)
            self.client.take()


def observe(tick: int, cameras: tuple[str, ...] = ("front", "wrist")) -> Observation:
    zeros = np.zeros(6)
    joints = JointState(
        tick, tick, zeros + 0.1, zeros, zeros, zeros, zeros,
        np.zeros(6, np.uint8), np.zeros(6, bool), np.zeros(6, np.int64),
    )  # fmt: skip
    image = np.full((4, 6, 3), 7, dtype=np.uint8)
    return Observation(tick, 1000 + tick, joints, zeros, {c: Frame(c, 3, 990, image) for c in cameras})
