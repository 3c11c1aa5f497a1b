"""Mutual TLS: every method against every role, no certificate, a foreign one, one without a role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from protos.access.door import PeopleDoor
from protos.access.errors import CredentialsError, ForbiddenError, UnidentifiedError
from protos.access.roles import Caller, Role, authorise, caller_from_uris
from protos.access.tls import TlsFiles, client_credentials, identity_in, server_credentials
from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.client import RobotCallError, RobotClient
from runtime.remote.config import RemoteConfig
from runtime.remote.roles import METHOD_ROLES
from runtime.remote.server import RemoteServer
from tests.runtime.certificates import Authority
from tests.runtime.memory_facade import MemoryFacade
from tools.authority import Authority as SiteAuthority
from tools.ports import free_port

DENIED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
SERVICES = (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)


def every_method() -> list[tuple[str, bool, bool]]:
    """(full name, client streams, server streams) of every method the server offers."""
    return [
        (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
        for descriptor in SERVICES
        for service in descriptor.services_by_name.values()
        for method in service.methods
    ]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[RemoteServer]:
    config = RemoteConfig(address="127.0.0.1:0", tls=authority.issue("robot"))
    server = RemoteServer(config, MemoryFacade())
    await server.start()
    yield server
    await server.stop(0.1)


def person(authority: Authority, role: str) -> TlsFiles:
    return authority.issue(f"{role}-person", f"spiffe://ratchet/role/{role}/anna")


async def call(
    channel: grpc.aio.Channel, name: str, client_streams: bool, server_streams: bool
) -> grpc.StatusCode:
    """Call a method with an empty message; the status it ends with, OK once it has answered."""
    empty = {"request_serializer": None, "response_deserializer": None}
    try:
        if client_streams and server_streams:
            stream = channel.stream_stream(name, **empty)(iter([b""]), timeout=5)
            await stream.read()
        elif client_streams:
            await channel.stream_unary(name, **empty)(iter([b""]), timeout=5)
        elif server_streams:
            stream = channel.unary_stream(name, **empty)(b"", timeout=5)
            answer = await stream.read()
            if answer is grpc.aio.EOF:
                return await stream.code()
            stream.cancel()
        else:
            await channel.unary_unary(name, **empty)(b"", timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("role", list(Role))
async def test_every_method_against_every_role(
    server: RemoteServer, authority: Authority, role: Role
) -> None:
    files = person(authority, role.name.lower())
    async with grpc.aio.secure_channel(server.address, client_credentials(files)) as channel:
        for name, client_streams, server_streams in every_method():
            status = await call(channel, name, client_streams, server_streams)
            allowed = role >= METHOD_ROLES[name]
            assert (status not in DENIED) == allowed, f"{role.name} {name}: {status}"


def test_the_table_names_every_method_and_no_other() -> None:
    assert {name for name, _, _ in every_method()} == set(METHOD_ROLES)


def test_what_is_not_in_the_table_is_denied() -> None:
    with pytest.raises(ForbiddenError, match="no role includes"):
        authorise(Caller("anna", Role.DEPLOY), "/ratchet.v1.RobotControl/Dance", METHOD_ROLES)


@pytest.mark.parametrize("method", every_method(), ids=lambda method: method[0].rpartition("/")[2])
async def test_a_certificate_without_a_role_reaches_nothing(
    server: RemoteServer, authority: Authority, method: tuple[str, bool, bool]
) -> None:
    nobody = authority.issue("nobody")
    async with grpc.aio.secure_channel(server.address, client_credentials(nobody)) as channel:
        assert await call(channel, *method) is grpc.StatusCode.UNAUTHENTICATED


async def test_no_certificate_and_a_foreign_one_do_not_get_in(
    server: RemoteServer, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path, "foreign").issue(
        "eve", "spiffe://ratchet/role/deploy/eve", trust=authority.ca
    )
    naked = grpc.ssl_channel_credentials(root_certificates=authority.ca.read_bytes())
    for credentials in (client_credentials(foreign), naked):
        async with grpc.aio.secure_channel(server.address, credentials) as channel:
            for name, client_streams, server_streams in every_method():
                status = await call(channel, name, client_streams, server_streams)
                assert status is grpc.StatusCode.UNAVAILABLE, name
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert (
            await call(channel, "/ratchet.v1.RobotControl/EStop", False, False) is grpc.StatusCode.UNAVAILABLE
        )


async def test_a_client_refuses_a_robot_of_another_authority(
    server: RemoteServer, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    files = authority.issue("anna", "spiffe://ratchet/role/look/anna", trust=other.ca)
    async with RobotClient(server.address, files, timeout_s=2.0) as client:
        with pytest.raises(RobotCallError) as caught:
            await client.state()
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


async def test_a_lease_belongs_to_the_certificate_that_took_it(
    server: RemoteServer, authority: Authority
) -> None:
    ben = authority.issue("ben", "spiffe://ratchet/role/drive/ben")
    async with (
        RobotClient(server.address, person(authority, "drive")) as anna,
        grpc.aio.secure_channel(server.address, client_credentials(ben)) as channel,
        anna.control() as control,
    ):
        assert control.lease.holder == "anna"
        enable = channel.unary_unary(
            "/ratchet.v1.RobotControl/Enable", request_serializer=pb.LeaseRequest.SerializeToString
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await enable(pb.LeaseRequest(lease=control.lease.id), timeout=5)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [b"spiffe://ratchet/role/drive/anna", b"spiffe://ratchet/role/deploy/anna"],
        [b"spiffe://elsewhere/role/drive/anna"],
        [b"spiffe://ratchet/role/admin/anna"],
        [b"spiffe://ratchet/role/drive/anna/deploy"],
        [b"spiffe://ratchet/role/drive/"],
        [b"spiffe://ratchet/role/drive/anna\n"],
        [b"https://ratchet/role/drive/anna"],
        [b"\xff\xfe"],
    ],
)
def test_only_one_exact_identity_counts(uris: list[bytes]) -> None:
    with pytest.raises(UnidentifiedError):
        caller_from_uris(uris, "ratchet")


def test_identity_gives_name_and_role() -> None:
    assert caller_from_uris([b"spiffe://ratchet/role/drive/anna"], "ratchet") == Caller("anna", Role.DRIVE)


def test_wrong_files_are_one_line(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("robot")
    with pytest.raises(CredentialsError, match="cannot read"):
        server_credentials(good.model_copy(update={"key": tmp_path / "missing"}))
    with pytest.raises(CredentialsError, match="no private key"):
        server_credentials(good.model_copy(update={"key": good.certificate}))


async def test_people_come_in_with_a_token_and_stopping_is_never_too_fast(tmp_path: Path) -> None:
    site, _ = SiteAuthority.ensure(tmp_path / "authority")
    site.server(tmp_path / "server", ["127.0.0.1"])
    site.client(tmp_path / "robot", "robot", Role.LOOK)
    token = site.token("anna", Role.LOOK)
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "token").write_text(token.text)
    (tmp_path / "anna" / "ca.pem").write_bytes((tmp_path / "server" / "ca.pem").read_bytes())
    people = f"127.0.0.1:{free_port()}"
    server = tmp_path / "server"
    config = RemoteConfig(
        address="127.0.0.1:0",
        tls=TlsFiles(certificate=server / "server.pem", key=server / "server.key", ca=server / "ca.pem"),
        people=PeopleDoor(address=people, tokens=server / "tokens.pub"),
        calls_per_s=1,
        calls_burst=2,
    )
    facade = MemoryFacade()
    remote = RemoteServer(config, facade)
    await remote.start()
    try:
        async with RobotClient(people, identity_in(tmp_path / "anna")) as client:
            await client.state()
            await client.state()
            with pytest.raises(RobotCallError, match="calls more than 1 times a second"):
                await client.state()
            for _ in range(5):
                await client.estop("test")
            with pytest.raises(RobotCallError, match="needs drive"):
                async with client.control("anna"):
                    pass
        async with RobotClient(remote.address, identity_in(tmp_path / "anna")) as client:
            with pytest.raises(RobotCallError):  # a token is nothing at the machines' door
                await client.state()
    finally:
        await remote.stop(0.1)
