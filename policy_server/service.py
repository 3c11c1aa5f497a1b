# ruff: noqa: N802 (method names are the wire contract's)
"""The gRPC service: typed messages in and out; every refusal is a status with a one-line reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from typing import Any, NoReturn

import grpc

from policy_server.backends import check_backend
from policy_server.clients import Clients
from policy_server.config import Backend, ServerConfig
from policy_server.desk import RequestDesk, refusal
from policy_server.errors import NothingServingError, PeerError, ServerError
from policy_server.inference import InferenceWorker
from policy_server.lanes import Lane, Lanes, is_local
from policy_server.loading import Loaded, allowed_path, load_slot
from policy_server.slots import BundleSlots, Serving
from policy_server.spec import check_session
from policy_server.status import describe
from policy_server.streams import in_order
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """`PolicyService` of ``protos/ratchet/v1/policy.proto`` over a set of slots."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.slots = BundleSlots(config.max_resident, config.allow_uncalibrated)
        self.clients = Clients(config.max_clients)
        self.lanes = Lanes(config.max_lanes, config.max_lane_mib * 2**20)
        self.worker = InferenceWorker(self.slots, self.clients, config.max_waiting, config.max_linger_ms)
        self._desk = RequestDesk(config, self.slots, self.clients, self.lanes, self.worker)
        self._stopping = asyncio.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading = asyncio.Lock()

    def end_streams(self) -> None:
        """End the calls that would stay open for ever; what they hold is taken back."""
        self._stopping.set()

    def close(self) -> None:
        """Stop the threads; a load in progress is waited for."""
        self._desk.close()
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
        try:
            return await self._desk.answer(request, context.time_remaining(), context.peer())
        except ServerError as error:
            await _refuse(context, error)

    async def InferStream(
        self, request_iterator: AsyncIterator[pb.InferRequest], context: Context
    ) -> AsyncIterator[pb.InferResponse]:
        peer = context.peer()

        async def answer(request: pb.InferRequest) -> pb.InferResponse:
            try:
                return await self._desk.answer(request, None, peer)
            except ServerError as error:
                return refusal(request, error)

        config = self._config
        answers = in_order(aiter(request_iterator), answer, config.max_in_flight, config.idle_s)
        async with aclosing(answers):
            async for response in answers:
                yield response

    async def OpenFrames(
        self, request: pb.OpenFramesRequest, context: Context
    ) -> AsyncIterator[pb.FrameLane]:
        try:
            with self._open_lane(request.session, context.peer()) as lane:
                yield lane.describe()
                await self._until_idle(lane)
        except ServerError as error:
            await _refuse(context, error)

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
        return describe(self.slots, self.worker, self.clients, self.lanes, request.manifests)

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

    def _open_lane(self, session: str, peer: str) -> AbstractContextManager[Lane]:
        check_session(session)
        serving = self.slots.serving
        if serving is None:
            raise NothingServingError("no bundle is loaded; load one")
        if not is_local(peer):
            raise PeerError("shared memory is for clients on this host; send pictures in messages")
        return self.lanes.lane(session or peer, serving.slot.spec)

    async def _until_idle(self, lane: Lane) -> None:
        """Return when no request used the lane for long, or when the server stops."""
        while (left_s := self._config.idle_s - (time.monotonic_ns() - lane.used_ns) / 1e9) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue
            return


async def _refuse(context: Context, error: ServerError) -> NoReturn:
    await context.abort(error.status, str(error))
    raise AssertionError("abort returned")
