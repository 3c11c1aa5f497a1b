"""Configuration: bounded, open to nobody by oversight, an unknown key is an error with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_server.config import ServerConfig, load_config, make_config
from policy_server.errors import ConfigError

GOOD = {"address": "unix:/tmp/s", "trust": Path("keys"), "allowed_roots": (Path("bundles"),)}


UNIX = ["unix:/run/x.sock", "unix:///run/x"]
LOOPBACK = ["127.0.0.1:0", "localhost:50051", "[::1]:1"]
REACHABLE = ["0.0.0.0:50051", "[::]:1", "192.168.1.2:5", "robot.local:5"]
MALFORMED = ["127.0.0.1", "127.0.0.1:70000", "unix:", "", "unix:/" + "x" * 120]


TLS = {"certificate": Path("server.pem"), "key": Path("server.key"), "ca": Path("ca.pem")}


@pytest.mark.parametrize("address", UNIX)
def test_a_unix_socket_needs_nothing_more(address: str):
    assert make_config({**GOOD, "address": address}, "test").plaintext


@pytest.mark.parametrize("address", LOOPBACK)
def test_plaintext_on_loopback_is_chosen_never_assumed(address: str):
    with pytest.raises(ConfigError, match="plaintext"):
        make_config({**GOOD, "address": address}, "test")
    assert make_config({**GOOD, "address": address, "plaintext": True}, "test").address == address


@pytest.mark.parametrize("address", REACHABLE)
def test_an_address_that_others_can_reach_is_encrypted_or_refused(address: str):
    with pytest.raises(ConfigError, match="plaintext"):
        make_config({**GOOD, "address": address, "plaintext": True}, "test")
    assert make_config({**GOOD, "address": address, "tls": TLS}, "test").tls is not None


@pytest.mark.parametrize("address", MALFORMED)
def test_a_malformed_address_is_refused(address: str):
    with pytest.raises(ConfigError, match="address"):
        make_config({**GOOD, "address": address, "plaintext": True}, "test")


def test_tokens_never_travel_in_the_open():
    people = {"address": "0.0.0.0:50063", "tokens": Path("tokens.pub")}
    with pytest.raises(ConfigError, match="in the open"):
        make_config({**GOOD, "address": "unix:/s", "people": people}, "test")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threds": 2}, "threds"),
        ({"threads": 0}, "threads"),
        ({"backend": "tpu"}, "backend"),
        ({"max_resident": 1}, "max_resident"),
        ({"allowed_roots": ()}, "nothing could ever be loaded"),
    ],
)
def test_a_wrong_key_or_value_is_named(change: dict[str, object], word: str):
    with pytest.raises(ConfigError, match=word) as caught:
        make_config({**GOOD, **change}, "policy.toml")
    assert str(caught.value).startswith("policy.toml: ")
    assert "\n" not in str(caught.value)


def test_the_first_bundles_directory_is_the_root_when_none_is_given(tmp_path: Path):
    config = ServerConfig(address="unix:/s", trust=tmp_path, bundle=tmp_path / "bundles" / "a")
    assert config.roots == ((tmp_path / "bundles").resolve(),)


def test_a_file_is_read_and_options_override_it(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text('address = "unix:/a"\ntrust = "keys"\nallowed_roots = ["bundles"]\nthreads = 2\n')
    config = load_config(file, address="unix:/b", backend=None)
    assert (config.address, config.threads, config.backend) == ("unix:/b", 2, "onnx")


@pytest.mark.parametrize(("content", "word"), [(None, "cannot read"), ("address = ", "not TOML")])
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, content: str | None, word: str):
    file = tmp_path / "policy.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=word):
        load_config(file)
