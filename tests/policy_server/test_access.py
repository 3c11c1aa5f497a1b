"""Who gets into a policy server: certificates, tokens, roles, what was taken back, and how fast."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
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
from tests.policy_server.conftest import Site
from tools.authority import Authority

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


async def test_a_token_ends_also_for_whoever_is_connected(site: Site, monkeypatch: Any) -> None:
    token, later = site.token(Role.LOOK, days=1.0), time.time() + 90_000
    async with open_channel(site.people, identity_in(token)) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        assert await stub.Status(pb.StatusRequest(), timeout=10).code() is Status.OK
        monkeypatch.setattr(tokens, "time", SimpleNamespace(time=lambda: later))
        for _ in range(2):
            call = stub.Status(pb.StatusRequest(), timeout=10)
            assert await call.code() is Status.UNAUTHENTICATED
            assert "has ended" in await call.details()


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
