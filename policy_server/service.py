# ruff: noqa: N802 (method names are the wire contract's)
"""The gRPC service: typed messages in and out; every refusal is a status with a one-line reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from policy_server.backends import check_backend
from policy_server.config import Backend, ServerConfig
from policy_server.errors import NothingServingError, RequestError, ServerError
from policy_server.inference import InferenceWorker
from policy_server.loading import Loaded, allowed_path, load_slot
from policy_server.slots import BundleSlots, Serving
from policy_server.spec import check_request
from protos.codec import encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """`PolicyService` of ``protos/ratchet/v1/policy.proto`` over a set of slots."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.slots = BundleSlots(config.max_resident, config.allow_uncalibrated)
        self.worker = InferenceWorker(self.slots, config.max_waiting)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading = asyncio.Lock()

    def close(self) -> None:
        """Stop both threads; a load in progress is waited for."""
        self.worker.close()
        self._loader.shutdown(wait=True, cancel_futures=True)

    async def load(self, path: str, backend: str, activate: bool) -> tuple[Loaded, Serving | None]:
        """Load a bundle beside the serving one; raises ServerError and leaves that one serving."""
        known: Backend = check_backend(backend, self._config.backend)
        directory = allowed_path(path, self._config.roots)
        async with self._loading:
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._loader, load_slot, directory, known, self._config, self.slots.check_replacement
            )
            # Everything below is one step of the event loop: nothing comes between the checks
            # against the serving bundle and the switch.
            if activate:
                self.slots.check_replacement(loaded.slot.manifest, loaded.slot.spec, loaded.slot.version)
            slot = self.slots.add(loaded.slot)
            return loaded, self.slots.activate(slot) if activate else None

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.InferResponse:
        remaining = context.time_remaining()
        try:
            return await self._infer(request, remaining)
        except ServerError as error:
            await _refuse(context, error)

    async def InferStream(
        self, request_iterator: AsyncIterator[pb.InferRequest], context: Context
    ) -> AsyncIterator[pb.InferResponse]:
        async for request in request_iterator:
            try:
                response = await self._infer(request, None)
            except ServerError as error:
                await _refuse(context, error)
            yield response

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        try:
            loaded, serving = await self.load(request.path, request.backend, request.activate)
        except ServerError as error:
            log.warning("load.refused path=%r reason=%s", request.path[:256], error)
            await _refuse(context, error)
        return pb.LoadResponse(
            version=loaded.slot.version,
            verify_ms=loaded.verify_ms,
            load_ms=loaded.load_ms,
            warm_ms=loaded.warm_ms,
            active=serving is not None,
            epoch=self.slots.epoch,
        )

    async def Swap(self, request: pb.SwapRequest, context: Context) -> pb.SwapResponse:
        return await self._switch(request.version, context)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.SwapResponse:
        return await self._switch(None, context)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        counters = self.worker.counters
        active = self.slots.serving.slot if self.slots.serving else None
        return pb.StatusResponse(
            slots=[
                pb.Slot(
                    version=slot.version,
                    backend=slot.backend,
                    active=slot is active,
                    chunk=slot.manifest.chunk,
                    cameras=[camera.name for camera in slot.spec.cameras],
                    manifest_json=slot.manifest.model_dump_json() if request.manifests else "",
                )
                for slot in self.slots.slots
            ],
            epoch=self.slots.epoch,
            served=counters.served,
            failed=counters.failed,
            dropped=counters.dropped,
            refused=counters.refused,
            exec_ms_p50=counters.percentile(50),
            exec_ms_p99=counters.percentile(99),
        )

    async def _switch(self, version: str | None, context: Context) -> pb.SwapResponse:
        """Swap to a version, or roll back when it is None."""
        begin = time.perf_counter()
        before = self.slots.serving
        try:
            serving = self.slots.rollback() if version is None else self.slots.swap(version)
        except ServerError as error:
            log.warning("switch.refused reason=%s", error)
            await _refuse(context, error)
        return pb.SwapResponse(
            version=serving.slot.version,
            previous=before.slot.version if before else "",
            epoch=serving.epoch,
            swap_ms=(time.perf_counter() - begin) * 1e3,
        )

    async def _infer(self, request: pb.InferRequest, remaining_s: float | None) -> pb.InferResponse:
        limit_s = self._config.default_deadline_s
        if remaining_s is not None:
            limit_s = min(remaining_s, limit_s)
        deadline_ns = time.monotonic_ns() + round(limit_s * 1e9)
        serving = self.slots.serving
        if serving is None:
            raise NothingServingError("no bundle is loaded; load one")
        try:
            inputs = check_request(request, serving.slot.spec)
        except RequestError:
            self.worker.counters.refused += 1
            raise
        answer = await self.worker.infer(inputs, deadline_ns)
        return pb.InferResponse(
            request_id=request.request_id,
            tick=request.tick,
            observation_ns=request.observation_ns,
            actions=encode_tensor(answer.actions),
            features=encode_tensor(answer.features),
            version=answer.version,
            epoch=answer.epoch,
            exec_ms=answer.exec_ms,
            queue_ms=answer.queue_ms,
        )


async def _refuse(context: Context, error: ServerError) -> NoReturn:
    await context.abort(error.status, str(error))
    raise AssertionError("abort returned")
