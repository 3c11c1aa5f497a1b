"""`ratchet serve`, with `model ask`, `promote` and `rollback` at its door: it follows the registry."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Toys, interrupt, ratchet, running

from policies.bundle import Bundle, reissue
from policies.keys import TrustStore, ensure_key


@pytest.fixture
def short() -> Iterator[Path]:
    """A socket's path may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="rs") as folder:
        yield Path(folder)


def test_a_server_answers_follows_a_promotion_and_goes_back(toys: Toys, tmp_path: Path, short: Path) -> None:
    key = ensure_key(toys.keys)
    first = Bundle.open(toys.bundle, TrustStore.load(toys.keys))
    second = reissue(first, tmp_path / "second", key, evaluation={"number": 2})
    where = ("--registry", tmp_path / "registry", "--keys", toys.keys)
    for bundle in (first, second):
        assert ratchet("model", "add", bundle.path, *where).code == 0
    kept = tmp_path / "registry" / "bundles" / first.version
    address = f"unix:{short}/policy.sock"
    ask = ("model", "ask", address, "--store", toys.store, "--episode", "toy-1", "--step", 3)
    with running(short / "policy.sock", "serve", kept, "--address", address, "--keys", toys.keys) as server:
        answer = ratchet(*ask, "--json").json()
        assert answer["version"] == first.version
        assert (len(answer["actions"]), len(answer["actions"][0]), len(answer["recorded"])) == (8, 6, 6)
        assert "shoulder_pan.pos" in ratchet(*ask).out
        assert "has 24 steps" in ratchet(*ask[:-1], 24).one_line()
        force = ("--without-gate", "--why", "test", "--server", address)
        promoted = ratchet("model", "promote", second.version, *force, *where)
        assert f"served at {address}" in promoted.out, promoted.err
        assert ratchet(*ask, "--json").json()["version"] == second.version
        assert ratchet("model", "rollback", "--why", "test", "--server", address, *where).code == 0
        assert ratchet(*ask, "--json").json()["version"] == first.version
        code, err = interrupt(server)
    assert code == 0, err
    assert "Traceback" not in err
    assert "no policy server answers" in ratchet(*ask).one_line()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--address", "0.0.0.0:50061"], "needs --tls DIR"),
        (["--address", "0.0.0.0:50061", "--plaintext"], "would let the network"),
        (["--address", "example.org:99999", "--tls", "x"], "neither unix:/path nor host:port"),
        (["--tls", "nowhere"], "cannot read nowhere"),
        (["--people", "0.0.0.0:1", "--plaintext"], "--people needs --tls"),
        (["--plaintext", "--backend", "tensorrt"], "'tensorrt' is not one of"),
        (["--plaintext", "--trust", "none"], "no trusted keys in none"),
    ],
)
def test_what_it_will_not_serve_at(toys: Toys, options: list[str], expected: str) -> None:
    assert expected in ratchet("serve", toys.bundle, "--keys", toys.keys, *options).one_line()


def test_the_door_that_cannot_be_opened_is_named(toys: Toys, tmp_path: Path) -> None:
    ratchet("keys", "init", "--keys", tmp_path / "keys")
    tls = ("--tls", tmp_path / "keys" / "server", "--address", "127.0.0.1:0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        people = f"127.0.0.1:{taken.getsockname()[1]}"
        done = ratchet("serve", toys.bundle, "--keys", toys.keys, *tls, "--people", people)
    assert f"cannot listen on {people}; is another server there" in done.err
    assert done.code == 2


def test_a_wrong_key_of_its_file_is_named_with_the_right_one(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("max_bach = 3\n")
    line = ratchet("serve", "--config", tmp_path / "s.toml").one_line()
    assert "unknown key 'max_bach'; did you mean 'max_batch'?" in line


def test_no_bundle_there(toys: Toys, tmp_path: Path) -> None:
    wanted = ("serve", tmp_path / "none", "--keys", toys.keys, "--address", f"unix:{tmp_path}/s")
    assert "no bundle directory at" in ratchet(*wanted).one_line()
