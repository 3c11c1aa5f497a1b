# ruff: noqa: N802 (method names are the wire contract's)
"""The gRPC service: typed messages in and out; every refusal is a status with a one-line reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Any, NoReturn

import grpc

from policy_server.answers import add_deployment, load_response, shadow_report
from policy_server.batch import Answer, Outcome
from policy_server.clients import Clients
from policy_server.config import ServerConfig
from policy_server.deployment import Deployment
from policy_server.desk import RequestDesk, refusal
from policy_server.errors import (
    InferenceError,
    LaneError,
    NothingServingError,
    PeerError,
    RequestError,
    ServerError,
    UnknownVersionError,
)
from policy_server.inference import InferenceWorker
from policy_server.lanes import Lane, Lanes, is_local
from policy_server.schedule import Job
from policy_server.slots import BundleSlots, Serving
from policy_server.spec import check_report, check_session, is_usual
from policy_server.status import describe
from policy_server.streams import in_order
from protos.access.call import caller_name
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
        self.deployment = Deployment(config, self.slots)

    def end_streams(self) -> None:
        """End the calls that would stay open for ever; what they hold is taken back."""
        self._stopping.set()

    def close(self) -> None:
        """Stop the threads; a load in progress is waited for."""
        self._desk.close()
        self.worker.close()
        self.deployment.close()

    async def start(self) -> None:
        """Load what is to be served first. Raises ServerError when it is refused."""
        await self.deployment.start()
        self.worker.watch = self._after_run

    def tick(self, seconds: float) -> None:
        """Let time pass on a probation."""
        self.deployment.tick(seconds)

    async def _after_run(
        self, serving: Serving, jobs: Sequence[Job[Answer]], outcomes: Sequence[Outcome]
    ) -> None:
        """The answers have gone out: count the failures, and show an observation to the shadow."""
        answers = [(row, outcome) for row, outcome in enumerate(outcomes) if isinstance(outcome, Answer)]
        broken = any(isinstance(outcome, InferenceError) for outcome in outcomes)
        if broken and not answers:  # what no training data was like is not held against the bundle
            seen = serving.slot.manifest.normalisation.state
            broken = all(is_usual(job.inputs.state, seen) for job in jobs) or not serving.slot.alive
        if answers or broken:
            await self.deployment.answered(serving, fine=bool(answers))
        shadow = self.deployment.shadows.wanted(serving.slot) if answers else None
        if shadow is not None and not self.worker.waiting:
            row, answer = answers[0]
            try:
                shadow.look(await self.worker.observed(row), answer.actions, serving.slot)
            except LaneError:  # the client is quick, or gone, and its pictures with it
                shadow.missed()

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
                return await self._desk.answer(request, context.time_remaining(), peer)
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
            loaded, serving = await self.deployment.load(
                request.path,
                request.backend,
                request.activate,
                by_person=request.by_person,
                probation=not request.without_probation,
            )
        except ServerError as error:
            log.warning("load.refused path=%r reason=%s", request.path[:256], error)
            await _refuse(context, error)
        return load_response(loaded, serving, self.slots.epoch)

    async def Swap(self, request: pb.SwapRequest, context: Context) -> pb.SwapResponse:
        swap = self.deployment.swap(
            request.version, by_person=request.by_person, probation=not request.without_probation
        )
        return await self._switch(swap, context)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.SwapResponse:
        return await self._switch(self.deployment.roll_back(request.why), context)

    async def Shadow(self, request: pb.ShadowRequest, context: Context) -> pb.ShadowReport:
        deployment = self.deployment
        try:
            if not 0 <= request.seconds <= 86_400:
                raise RequestError("seconds is not between 0 and 86400")
            if request.stop:
                await deployment.shadows.stop("asked to")
            elif request.bundle:
                await deployment.shadow(request.bundle, request.backend, request.seconds)
        except ServerError as error:
            log.warning("shadow.refused bundle=%r reason=%s", request.bundle[:256], error)
            await _refuse(context, error)
        return shadow_report(deployment.shadows.report())

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        deployment, session = self.deployment, request.session or context.peer()
        try:
            check_report(request)
            self.clients.check(session, caller_name())
            if not deployment.knows(request.version):
                raise UnknownVersionError(f"bundle {request.version!r} has not been here; it is not counted")
        except ServerError as error:
            await _refuse(context, error)
        flags = tuple(request.flags)
        drove = self._desk.answered.has((caller_name(), session), request.version, request.epoch)
        counted = drove and not request.mixed and request.episode not in deployment.standing.reported
        verdict = ""
        if counted:
            verdict = await deployment.report(request.version, request.episode, request.failed, flags)
        else:
            log.debug("report.not_counted session=%r episode=%r", request.session, request.episode)
        serving = self.slots.serving
        return pb.ReportResponse(
            counted=counted,
            failure=deployment.judge.is_failure(request.failed, flags),
            verdict=verdict,
            serving=serving.slot.version if serving else "",
        )

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        response = describe(self.slots, self.worker, self.clients, self.lanes, request.manifests)
        add_deployment(response, self.slots, self.deployment, self.deployment.shadows.report())
        return response

    async def _switch(self, switching: Awaitable[Serving], context: Context) -> pb.SwapResponse:
        """Answer what a swap or a rollback came to."""
        begin = time.perf_counter()
        before = self.slots.serving
        try:
            serving = await switching
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
        self.clients.seen(session or peer, caller_name())
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
