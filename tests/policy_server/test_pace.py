"""How often somebody may call, and how often fail to say who it is; in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from protos.access import tokens
from protos.access.attempts import FailedAttempts, origin_of
from protos.access.door import AccessConfig, Doorkeeper, PeopleDoor
from protos.access.errors import TooFastError, UnidentifiedError
from protos.access.limits import RateLimit
from protos.access.roles import Role
from protos.access.tls import TlsFiles
from tools.authority import Authority


def test_pace_is_kept_for_each_caller_in_bounded_memory() -> None:
    now = 0.0
    limit = RateLimit(10.0, 2.0, lambda: now)
    limit.take("a")
    limit.take("a")
    with pytest.raises(TooFastError, match="a calls more than 10 times a second"):
        limit.take("a")
    limit.take("b")
    now = 0.1
    limit.take("a")
    for number in range(5000):
        limit.take(f"caller {number}")
    assert len(limit._buckets) <= 1024


class At:
    """A call as the door sees it."""

    def __init__(self, peer: str, token: str) -> None:
        self._peer, self._token = peer, token

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> Mapping[str, Any]:
        return {"transport_security_type": [b"ssl"]}

    def invocation_metadata(self) -> Any:
        return (("authorization", f"Bearer {self._token}"),)


def door_of(authority: Authority, folder: Path) -> Doorkeeper:
    """Of a server behind TLS, with a door for people."""
    authority.server(folder, ["127.0.0.1"])
    tls = TlsFiles(certificate=folder / "server.pem", key=folder / "server.key", ca=folder / "ca.pem")
    people = PeopleDoor(address="127.0.0.1:1", tokens=folder / "tokens.pub")
    return Doorkeeper(AccessConfig(tls=tls, people=people, failures_burst=3), {"/x": Role.LOOK})


def test_failed_attempts_do_not_keep_anybody_from_stopping_an_arm(tmp_path: Path) -> None:
    authority, _ = Authority.ensure(tmp_path / "a")
    door = door_of(authority, tmp_path / "s")
    here, away = "ipv4:10.0.0.1:99", "ipv4:10.0.0.2:99"
    for _ in range(3):
        with pytest.raises(UnidentifiedError):
            door.admit("/x", At(here, "rt1.nonsense"))
    anna, ben = authority.token("anna", Role.LOOK).text, authority.token("ben", Role.LOOK).text
    with pytest.raises(TooFastError, match=r"attempts from 10\.0\.0\.1"):
        door.admit("/x", At(here, anna))
    assert door.admit("/x", At(here, anna), counted=False).name == "anna"
    assert door.admit("/x", At(away, ben)).name == "ben"


def test_who_is_known_is_remembered_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.access.door._MAX_KNOWN", 2)
    authority, _ = Authority.ensure(tmp_path / "a")
    door = door_of(authority, tmp_path / "s")
    verify, verified = tokens.verify, list[str]()

    def counting(text: str, *arguments: Any) -> tokens.Token:
        token = verify(text, *arguments)
        verified.append(token.caller.name)
        return token

    monkeypatch.setattr(tokens, "verify", counting)
    shown = {name: authority.token(name, Role.LOOK).text for name in ("anna", "ben", "cleo")}
    for name in ("anna", "ben", "anna", "cleo", "anna", "ben"):
        assert door.admit("/x", At("ipv4:10.0.0.1:99", shown[name])).name == name
    assert verified == ["anna", "ben", "cleo", "ben"], "who came last is forgotten last"


def test_failed_attempts_are_bounded_from_one_origin_and_from_all_in_bounded_memory() -> None:
    now = 0.0
    attempts = FailedAttempts(1.0, 2.0, 10.0, lambda: now)
    for _ in range(2):
        attempts.failed("a")
    with pytest.raises(TooFastError, match="from a"):
        attempts.check("a")
    attempts.check("b")
    for number in range(5000):
        attempts.failed(f"origin {number}")
    with pytest.raises(TooFastError, match="from strangers"):
        attempts.check("c")
    attempts.check("certificate 1f", proven=True)  # answers for itself
    for _ in range(2):
        attempts.failed("certificate 1f", proven=True)
    with pytest.raises(TooFastError, match="certificate 1f"):
        attempts.check("certificate 1f", proven=True)
    assert len(attempts._origins._buckets) <= 1024
    now = 1.0
    attempts.check("c")


@pytest.mark.parametrize(
    ("peer", "origin"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:50", "fe80::/64"),
        ("ipv6:[::ffff:10.0.0.1]:50", "10.0.0.1"),
        ("unix:", "unix"),
        ("nonsense", "nonsense"),
    ],
)
def test_an_origin_is_a_host_whatever_its_port(peer: str, origin: str) -> None:
    assert origin_of(peer) == origin
