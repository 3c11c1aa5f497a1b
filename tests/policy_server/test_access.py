"""Who gets into a policy server: certificates, tokens, roles, what was taken back; and whose a session is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny

from policy_server.config import ServerConfig
from policy_server.gate import METHOD_ROLES
from policy_server.server import PolicyServer
from protos.access import tokens
from protos.access.errors import CredentialsError
from protos.access.roles import Role
from protos.access.tls import identity_in, open_channel
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from tools.authority import Authority
from tools.ports import free_port

Status = grpc.StatusCode
NEEDS: dict[Role, list[tuple[str, Any]]] = {
    Role.LOOK: [("Status", pb.StatusRequest())],
    Role.DRIVE: [("Infer", tiny.make_request(1)), ("Report", pb.ReportRequest())],
    Role.DEPLOY: [
        ("Load", pb.LoadRequest(path="x", backend="none")),
        ("Swap", pb.SwapRequest(version="x")),
        ("Rollback", pb.RollbackRequest()),
        ("Shadow", pb.ShadowRequest()),
    ],
}


@dataclass
class Site:
    """An authority, and a server that obeys it."""

    authority: Authority
    folder: Path
    address: str = ""
    people: str = ""

    def certificate(self, role: Role, name: str = "anna") -> Path:
        folder = self.folder / f"{name}-{role.name}"
        self.authority.client(folder, name, role)
        return folder

    def token(self, role: Role, days: float = 1.0, name: str = "ben") -> Path:
        made = self.authority.token(name, role, days)
        folder = self.folder / f"token-{made.id}"
        folder.mkdir()
        (folder / "token").write_text(made.text + "\n")
        (folder / "ca.pem").write_bytes((self.authority.folder / "ca.pem").read_bytes())
        return folder

    async def call(self, identity: Path, method: str, request: Any, people: bool = False) -> Status:
        async with open_channel(self.people if people else self.address, identity_in(identity)) as channel:
            call = getattr(policy_pb2_grpc.PolicyServiceStub(channel), method)(request, timeout=10)
            return await call.code()


@pytest.fixture
async def site(place: Any, tmp_path: Path) -> AsyncIterator[Site]:
    authority, made = Authority.ensure(tmp_path / "authority")
    assert made
    authority.server(tmp_path / "server", ["127.0.0.1"])
    site = Site(authority, tmp_path, people=f"127.0.0.1:{free_port()}")
    server = tmp_path / "server"
    config = place.config(
        bundle=place.bundle("a").path,
        address="127.0.0.1:0",
        tls={"certificate": server / "server.pem", "key": server / "server.key", "ca": server / "ca.pem"},
        people={"address": site.people, "tokens": server / "tokens.pub"},
        revoked=authority.folder / "revoked",
        calls_per_s=50,
        calls_burst=60,
        failures_per_s=0.01,
        failures_burst=10,
        failures_total_per_s=5.0,  # and so ten at once
    )
    async with PolicyServer(config) as running:
        site.address = f"127.0.0.1:{running.port}"
        yield site


def test_the_table_names_every_method_of_the_service() -> None:
    service = pb.DESCRIPTOR.services_by_name["PolicyService"]
    ours = {name for name in METHOD_ROLES if "PolicyService" in name}
    assert ours == {f"/{service.full_name}/{method.name}" for method in service.methods}


@pytest.mark.parametrize("role", list(Role))
async def test_a_role_reaches_what_it_includes_and_no_more(site: Site, role: Role) -> None:
    doors = ((site.certificate(role), False), (site.token(role, name="anna"), True))
    for identity, people in doors:
        for least, calls in NEEDS.items():
            for method, request in calls:
                status = await site.call(identity, method, request, people)
                allowed = status not in (Status.PERMISSION_DENIED, Status.UNAUTHENTICATED)
                assert allowed == (role >= least), f"{role.name} {method}: {status}"


async def test_strangers_do_not_get_in(site: Site, tmp_path: Path) -> None:
    foreign, _ = Authority.ensure(tmp_path / "foreign")
    foreign.client(tmp_path / "eve", "eve", Role.DEPLOY)
    (tmp_path / "eve" / "ca.pem").write_bytes((site.authority.folder / "ca.pem").read_bytes())
    assert await site.call(tmp_path / "eve", "Status", pb.StatusRequest()) is Status.UNAVAILABLE
    forged = site.token(Role.DEPLOY)
    (forged / "token").write_text(foreign.token("eve", Role.DEPLOY).text)
    assert await site.call(forged, "Status", pb.StatusRequest(), people=True) is Status.UNAUTHENTICATED
    late = site.token(Role.DEPLOY, days=-0.001)
    assert await site.call(late, "Status", pb.StatusRequest(), people=True) is Status.UNAUTHENTICATED
    # A token opens the people's door only; at the machines' one there must be a certificate.
    assert await site.call(site.token(Role.LOOK), "Status", pb.StatusRequest()) is Status.UNAVAILABLE
    async with grpc.aio.insecure_channel(site.address) as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Status(pb.StatusRequest(), timeout=5)
        assert await call.code() is Status.UNAVAILABLE


async def test_what_is_taken_back_counts_no_more_while_the_server_runs(site: Site) -> None:
    certificate, token = site.certificate(Role.LOOK, "ann"), site.token(Role.LOOK, name="ann")
    other = site.certificate(Role.LOOK, "ben")
    ask = pb.StatusRequest()
    assert await site.call(certificate, "Status", ask) is Status.OK
    assert await site.call(token, "Status", ask, people=True) is Status.OK
    assert {one.kind for one in site.authority.revoke("ann")} == {"certificate", "token"}
    await asyncio.sleep(1.1)  # the list is looked at once a second
    assert await site.call(certificate, "Status", ask) is Status.UNAUTHENTICATED
    assert await site.call(token, "Status", ask, people=True) is Status.UNAUTHENTICATED
    assert await site.call(other, "Status", ask) is Status.OK
    (site.authority.folder / "revoked").write_text("what is this\n")
    await asyncio.sleep(1.1)
    assert await site.call(other, "Status", ask) is Status.UNAUTHENTICATED  # it may name anybody


async def test_one_caller_cannot_take_all_the_calls(site: Site) -> None:
    identity = site.certificate(Role.LOOK)
    async with open_channel(site.address, identity_in(identity)) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        seen = []
        for _ in range(6):
            calls = [stub.Status(pb.StatusRequest(), timeout=10) for _ in range(32)]
            seen += [await call.code() for call in calls]
    assert set(seen) == {Status.OK, Status.RESOURCE_EXHAUSTED}
    assert await site.call(site.certificate(Role.LOOK, "ben"), "Status", pb.StatusRequest()) is Status.OK


def test_files_that_cannot_be_used_are_one_line_at_the_start(place: Any, tmp_path: Path) -> None:
    from policy_server.errors import ConfigError

    tls = {"certificate": tmp_path / "none.pem", "key": tmp_path / "none.key", "ca": tmp_path / "ca.pem"}
    (tmp_path / "revoked").write_text("nonsense\n")
    config: ServerConfig = place.config(address="unix:/tmp/x", revoked=tmp_path / "revoked")
    with pytest.raises(ConfigError, match="holds 'nonsense', no revocation"):
        PolicyServer(config)
    with pytest.raises(CredentialsError, match=r"neither client\.pem nor token"):
        identity_in(tmp_path)
    assert place.config(address="127.0.0.1:0", tls=tls, plaintext=False).tls is not None


async def test_a_session_is_whoevers_opened_it(site: Site) -> None:
    anna, ben = site.certificate(Role.DRIVE, "anna"), site.token(Role.DRIVE, name="ben")
    again = site.token(Role.DRIVE, name="anna")  # the same person
    async with open_channel(site.address, identity_in(anna)) as channel:
        mine = policy_pb2_grpc.PolicyServiceStub(channel)
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


async def test_forged_tokens_are_not_even_verified_after_a_while(site: Site, monkeypatch: Any) -> None:
    verified = 0
    verify = tokens.verify

    def counting(*arguments: Any) -> tokens.Token:
        nonlocal verified
        verified += 1
        return verify(*arguments)

    monkeypatch.setattr(tokens, "verify", counting)
    known, machine = site.token(Role.LOOK, name="ann"), site.certificate(Role.LOOK, "eve")
    ask = pb.StatusRequest()
    assert await site.call(known, "Status", ask, people=True) is Status.OK
    forged = site.token(Role.LOOK)
    head, body, signature = (forged / "token").read_text().strip().split(".")
    (forged / "token").write_text(f"{head}.{body}.{signature[::-1]}")
    async with open_channel(site.people, identity_in(forged)) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        codes = [await stub.Status(ask, timeout=10).code() for _ in range(30)]
    assert codes == [Status.UNAUTHENTICATED] * 10 + [Status.RESOURCE_EXHAUSTED] * 20
    assert verified == 11
    # Whoever was known before, and whoever has a certificate, is not shut out by strangers next door.
    assert await site.call(known, "Status", ask, people=True) is Status.OK
    assert await site.call(machine, "Status", ask) is Status.OK
