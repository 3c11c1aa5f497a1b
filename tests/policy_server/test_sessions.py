"""Whose a session is: only who opened it asks, reports and shares memory in its name."""

from __future__ import annotations

from typing import Any

import grpc
import tiny

from protos.access.roles import Role
from protos.access.tls import identity_in, open_channel
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from tests.policy_server.conftest import Site

Status = grpc.StatusCode


async def test_a_session_is_whoevers_opened_it(site: Site) -> None:
    anna, ben = site.certificate(Role.DRIVE, "anna"), site.token(Role.DRIVE, name="ben")
    again = site.token(Role.DRIVE, name="anna")  # the same person
    async with open_channel(site.address, identity_in(anna)) as channel:
        mine = policy_pb2_grpc.PolicyServiceStub(channel)
        lane = mine.OpenFrames(pb.OpenFramesRequest(session="arm"), timeout=30)
        assert (await lane.read()).lane, "her own, and a session from here on"
        reply = await mine.Infer(tiny.make_request(1, session="arm"), timeout=10)
        report = pb.ReportRequest(session="arm", episode="e", version=reply.version, failed=True)
        async with open_channel(site.people, identity_in(ben)) as other:
            bens = policy_pb2_grpc.PolicyServiceStub(other)
            for call in (
                bens.Infer(tiny.make_request(2, session="arm"), timeout=10),
                bens.Report(report, timeout=10),
                bens.OpenFrames(pb.OpenFramesRequest(session="arm"), timeout=10),
            ):
                assert await call.code() is Status.PERMISSION_DENIED
                assert "somebody else's" in await call.details()
            stream = bens.InferStream(timeout=10)
            await stream.write(tiny.make_request(3, session="arm"))
            answer = await stream.read()
            assert answer.status == Status.PERMISSION_DENIED.value[0]
            stream.cancel()
            assert (await bens.Infer(tiny.make_request(4, session="ben's"), timeout=10)).tick == 4
        status = await mine.Status(pb.StatusRequest(), timeout=10)
        assert {c.session: c.served for c in status.clients} == {"arm": 1, "ben's": 1}
        assert status.refused == 2
        assert await site.call(again, "Infer", tiny.make_request(5, session="arm"), people=True) is Status.OK
        assert (await mine.Report(report, timeout=10)).counted


async def test_a_report_counts_for_nobody_who_took_a_name_over(site: Site, monkeypatch: Any) -> None:
    anna, ben = site.certificate(Role.DRIVE, "anna"), site.certificate(Role.DRIVE, "ben")
    async with (
        open_channel(site.address, identity_in(anna)) as first,
        open_channel(site.address, identity_in(ben)) as second,
    ):
        request = tiny.make_request(1, session="arm")
        reply = await policy_pb2_grpc.PolicyServiceStub(first).Infer(request, timeout=10)
        monkeypatch.setattr("policy_server.clients.FORGET_NS", 0)
        stub = policy_pb2_grpc.PolicyServiceStub(second)
        assert not (await stub.Status(pb.StatusRequest(), timeout=10)).clients  # anna is forgotten
        report = pb.ReportRequest(session="arm", episode="e", version=reply.version, failed=True)
        assert not (await stub.Report(report, timeout=10)).counted


async def test_who_gives_a_session_no_name_shares_it_with_nobody(site: Site) -> None:
    anna, ben = site.certificate(Role.DRIVE, "anna"), site.certificate(Role.DRIVE, "ben")
    async with (
        open_channel(site.address, identity_in(anna)) as first,
        open_channel(site.address, identity_in(ben)) as second,
    ):
        mine, bens = (policy_pb2_grpc.PolicyServiceStub(channel) for channel in (first, second))
        nameless = tiny.make_request(1, session="")
        reply = await mine.Infer(nameless, timeout=10)
        report = pb.ReportRequest(episode="e", version=reply.version, failed=True)
        assert not (await bens.Report(report, timeout=10)).counted, "it drove nobody of his"
        assert (await bens.Infer(nameless, timeout=10)).status == 0
        assert (await mine.Report(report, timeout=10)).counted
        status = await mine.Status(pb.StatusRequest(), timeout=10)
        assert [client.served for client in status.clients] == [1, 1]
