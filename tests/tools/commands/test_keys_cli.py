"""`ratchet keys`: a key is made once, shown, and other people's are trusted by their file."""

from __future__ import annotations

from pathlib import Path

from cli_helpers import ratchet

from policies.keys import KeyPair, TrustStore, write_public


def test_a_key_is_made_once_in_the_home_and_shown(tmp_path: Path) -> None:
    made = ratchet("keys", "init")
    folder = tmp_path / "home" / ".config" / "ratchet" / "keys"
    assert made.code == 0
    assert (folder / "signing.key").stat().st_mode & 0o077 == 0
    shown = ratchet("keys", "show", "--json").json()
    assert shown["key"] in made.out
    assert shown["trusted"] == [shown["key"]]
    again = ratchet("keys", "init")
    assert f"key {shown['key']} was there already" in again.out


def test_a_key_elsewhere(tmp_path: Path) -> None:
    assert ratchet("keys", "init", "--keys", tmp_path / "k").code == 0
    assert str(tmp_path / "k") in ratchet("keys", "show", "--keys", tmp_path / "k").out


def test_a_folder_that_cannot_be_made() -> None:
    assert "cannot write /proc/keys/x (" in ratchet("keys", "init", "--keys", "/proc/keys/x").one_line()


def test_there_is_nothing_to_show_before_init() -> None:
    assert "make one with `ratchet keys init`" in ratchet("keys", "show").one_line()


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    ratchet("keys", "init", "--keys", tmp_path)
    (tmp_path / "signing.key").chmod(0o644)
    assert "readable by others" in ratchet("keys", "init", "--keys", tmp_path).one_line()


def test_trusting_a_colleague(tmp_path: Path) -> None:
    ratchet("keys", "init", "--keys", tmp_path / "mine")
    other = KeyPair.generate()
    public = write_public(other.public, tmp_path)
    done = ratchet("keys", "trust", public, "--keys", tmp_path / "mine")
    assert other.id in done.out
    assert other.id in TrustStore.load(tmp_path / "mine").ids


def test_a_file_that_is_no_key_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text("ssh-ed25519 AAAA")
    line = ratchet("keys", "trust", tmp_path / "x.pub", "--keys", tmp_path / "mine").one_line()
    assert "x.pub is not a public key file" in line
    assert "is a directory" in ratchet("keys", "trust", tmp_path, "--keys", tmp_path / "mine").one_line()
    assert not list((tmp_path / "mine").glob("*")), "nothing was written"


def test_one_command_makes_the_authority_and_what_a_server_and_its_owner_need(tmp_path: Path) -> None:
    keys = tmp_path / "k"
    first = ratchet("keys", "init", "--keys", keys, "--host", "robot.local")
    assert first.code == 0, first.err
    for name in ("server/server.pem", "server/server.key", "server/tokens.pub", "me/client.pem", "me/ca.pem"):
        assert (keys / name).exists(), name
    for secret in ("authority/ca.key", "authority/tokens.key", "server/server.key", "me/client.key"):
        assert (keys / secret).stat().st_mode & 0o077 == 0, secret
    before = (keys / "server" / "server.pem").read_bytes(), (keys / "authority" / "ca.pem").read_bytes()
    assert "authority was there already" in ratchet("keys", "init", "--keys", keys).out
    assert before == ((keys / "server/server.pem").read_bytes(), (keys / "authority/ca.pem").read_bytes())


def test_what_was_issued_is_shown_and_can_be_taken_back(tmp_path: Path) -> None:
    keys = ("--keys", tmp_path / "k")
    ratchet("keys", "init", *keys)
    assert ratchet("keys", "issue", "robot-1", "--role", "drive", "--out", tmp_path / "r", *keys).code == 0
    assert ratchet("keys", "token", "anna", "--days", "7", "--out", tmp_path / "a", *keys).code == 0
    assert (tmp_path / "a" / "token").stat().st_mode & 0o077 == 0
    assert "token:" in ratchet("keys", "revoke", "anna", *keys).out
    issued = {one["name"]: one for one in ratchet("keys", "show", "--json", *keys).json()["issued"]}
    assert issued["anna"]["revoked"]
    assert issued["anna"]["role"] == "look"
    assert not issued["robot-1"]["revoked"]
    assert "nothing was issued to 'ben'" in ratchet("keys", "revoke", "ben", *keys).one_line()
    assert "other characters" in ratchet("keys", "issue", "a/b", "--out", tmp_path / "x", *keys).one_line()
    assert "make one with" in ratchet("keys", "token", "a", "--keys", tmp_path / "none").one_line()
