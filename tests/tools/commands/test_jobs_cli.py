"""`ratchet jobs`: a job goes out and its bundle comes home; `ratchet learn` says what it waits for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import TINY, Toys, interrupt, ratchet, running

from policies.bundle import Bundle
from policies.keys import TrustStore


@pytest.fixture
def short() -> Iterator[Path]:
    """A socket's path may have 107 bytes only."""
    with tempfile.TemporaryDirectory(prefix="rj") as folder:
        yield Path(folder)


def test_a_job_is_submitted_watched_listed_and_fetched(toys: Toys, tmp_path: Path, short: Path) -> None:
    address = f"unix:{short}/training.sock"
    at = ("--server", address)
    serve = (
        "jobs",
        "serve",
        "--root",
        tmp_path / "jobs",
        "--address",
        address,
        "--keys",
        toys.keys,
        "--nice",
        0,
    )
    with running(short / "training.sock", *serve) as service:
        assert "no job was submitted from here" in ratchet("jobs", "ls", *at).err
        job = ratchet(
            "jobs", "submit", "--store", toys.store, *at, "--watch", "--json", *TINY, "--set", "steps=4"
        ).json()
        assert (job["state"], job["step"]) == ("succeeded", 4)
        assert [row["id"] for row in ratchet("jobs", "ls", *at, "--json").json()] == [job["id"]]
        fetched = ratchet(
            "jobs", "fetch", job["id"], "--out", tmp_path / "home-bundle", *at, "--keys", toys.keys
        )
        assert job["bundle_version"] in fetched.out
        wrong = ratchet("jobs", "submit", "--store", toys.store, *at, "--where", "id = 'x'", "--watch", *TINY)
        assert wrong.code == 1
        assert "the selection holds no episode" in wrong.out
        assert "no job" in ratchet("jobs", "watch", "0" * 16, *at).one_line()
        assert (
            "unknown key 'stesp'"
            in ratchet("jobs", "submit", "--store", toys.store, *at, "--set", "stesp=1").one_line()
        )
        code, err = interrupt(service)
    assert (code, "Traceback" in err) == (0, False), err
    manifest = Bundle.open(tmp_path / "home-bundle", TrustStore.load(toys.keys)).manifest
    assert manifest.robot == "koch"
    assert "training service at" in ratchet("jobs", "ls", *at).one_line()


def test_the_service_stays_on_this_machine(tmp_path: Path) -> None:
    line = ratchet("jobs", "serve", "--root", tmp_path / "j", "--address", "0.0.0.0:1").one_line()
    assert "neither unix:/path nor loopback" in line
    assert not (tmp_path / "j").exists()


def _config(tmp_path: Path, toys: Toys, **more: object) -> Path:
    path = tmp_path / "learner.toml"
    values = {"store": toys.store, "work": tmp_path / "work", "keys": toys.keys, "trust": toys.keys, **more}
    path.write_text("\n".join(f'{key} = "{value}"' for key, value in values.items()) + "\n")
    return path


def test_one_round_needs_corrections(toys: Toys, tmp_path: Path) -> None:
    done = ratchet("learn", "--config", _config(tmp_path, toys), "--once", "--json")
    assert done.json() == {"round": None, "waiting": 0}
    assert "nothing to do: 0 new corrected episodes, 5 make a round" in done.err


def test_mistakes_in_the_learners_configuration_are_one_line(toys: Toys, tmp_path: Path) -> None:
    assert "`ratchet learn --help`" in ratchet("learn", "--config", tmp_path / "none.toml").one_line()
    path = _config(tmp_path, toys, polcy_server="unix:/x")
    assert (
        "unknown key 'polcy_server'; did you mean 'policy_server'?"
        in ratchet("learn", "--config", path).one_line()
    )
    path.write_text(path.read_text().replace("polcy_server", "name").replace("unix:/x", "no spaces allowed"))
    assert "key 'name'" in ratchet("learn", "--config", path).one_line()
    path.write_text(f'store = "{tmp_path / "none"}"\nwork = "w"\nkeys = "k"\ntrust = "k"\n')
    assert "no episode store" in ratchet("learn", "--config", path, "--once").one_line()
