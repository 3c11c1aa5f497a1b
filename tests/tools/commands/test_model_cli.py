"""`ratchet model`: what is there, whether it is sound, who is champion, and where a checkpoint goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import FIXTURES, Toys, ratchet

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from learner.ledger import Ledger, State
from policies.bundle import Bundle, reissue
from policies.config import FeatureStats, NormStats
from policies.errors import WrongRobotError
from policies.keys import KeyPair, TrustStore, ensure_key, write_public
from policies.manifest import KOCH_FEATURES
from tools import checkpoint_import

CHECKPOINT = FIXTURES / "lerobot_act"
real = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason=f"no LeRobot checkpoint at {CHECKPOINT}")


@pytest.fixture
def versions(toys: Toys, tmp_path: Path) -> list[Bundle]:
    """The same weights under three versions."""
    trust, key = TrustStore.load(toys.keys), ensure_key(toys.keys)
    out = [Bundle.open(toys.bundle, trust)]
    for number in (1, 2):
        out.append(reissue(out[-1], tmp_path / f"v{number}", key, evaluation={"number": number}))
    return out


def _registry(tmp_path: Path, toys: Toys) -> tuple[object, ...]:
    return ("--registry", tmp_path / "registry", "--keys", toys.keys)


def test_verify_says_which_is_bad_and_why(toys: Toys, tmp_path: Path) -> None:
    sound = ratchet("model", "verify", toys.bundle, "--keys", toys.keys, "--run")
    assert sound.code == 0
    assert "golden vectors" in sound.out
    corrupt, unsigned = (
        Path(shutil.copytree(toys.bundle, tmp_path / name)) for name in ("corrupt", "unsigned")
    )
    weights = bytearray((corrupt / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (corrupt / "model.safetensors").write_bytes(weights)
    (unsigned / "signature").unlink()
    found = ratchet("model", "verify", toys.bundle, corrupt, unsigned, "--keys", toys.keys, "--json")
    assert found.code == 1
    good, flipped, bare = found.json()
    assert (good["ok"], flipped["ok"], bare["ok"]) == (True, False, False)
    assert "does not have the signed hash" in flipped["detail"]
    assert "has no signature" in bare["detail"]


def test_nothing_bad_is_shown_served_evaluated_or_added(toys: Toys, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(toys.bundle, tmp_path / "bad"))
    (bad / "signature").write_bytes(b"ed25519 " + b"0" * 16 + b" " + b"A" * 86 + b"==\n")
    keys = ("--keys", toys.keys)
    for command in (
        ("model", "show", bad, *keys),
        ("model", "add", bad, "--registry", tmp_path / "r", *keys),
        ("serve", bad, "--address", f"unix:{tmp_path}/s", *keys),
        ("evaluate", bad, "--offline", "--store", toys.store, "--trust", toys.keys),
    ):
        line = ratchet(*command).one_line()
        assert "signed by unknown key 0000000000000000" in line, command
    assert not (tmp_path / "r" / "ledger.sqlite").exists()


def test_a_strangers_bundle_needs_their_key(toys: Toys, tmp_path: Path) -> None:
    ratchet("keys", "init", "--keys", tmp_path / "mine")
    assert (
        "signed by unknown key"
        in ratchet("model", "show", toys.bundle, "--keys", tmp_path / "mine").one_line()
    )
    ratchet("keys", "trust", next(toys.keys.glob("*.pub")), "--keys", tmp_path / "mine")
    assert ratchet("model", "show", toys.bundle, "--keys", tmp_path / "mine").code == 0
    assert "no trusted keys" in ratchet("model", "show", toys.bundle, "--trust", tmp_path).one_line()


def test_a_life_in_the_registry(toys: Toys, tmp_path: Path, versions: list[Bundle]) -> None:
    where = _registry(tmp_path, toys)
    first, second, third = versions
    assert "champion" in ratchet("model", "add", first.path, *where).out
    for bundle in (second, third):
        assert "candidate" in ratchet("model", "add", bundle.path, *where).out
    assert "in the registry already" in ratchet("model", "add", second.path, *where).one_line()
    refused = ratchet("model", "promote", second.version[:6], *where).one_line()
    assert "has passed no gate" in refused
    assert "needs --why" in ratchet("model", "promote", second.version, "--without-gate", *where).one_line()
    done = ratchet("model", "promote", second.version[:6], "--without-gate", "--why", "by hand", *where)
    assert done.code == 0
    states = {r["version"]: r["state"] for r in ratchet("model", "ls", *where[:2], "--json").json()}
    assert states == {
        first.version: "retired", second.version: "champion", third.version: "candidate",
    }  # fmt: skip
    shown = ratchet("model", "show", second.version[:8], *where)
    assert "without a gate: by hand" in shown.out
    back = ratchet("model", "rollback", "--why", "drops the cube", *where)
    assert f"{first.version} is champion" in back.out
    again = ratchet("model", "promote", second.version, *where).one_line()
    assert "cannot become champion" in again, "what was rolled back needs a gate anew"
    assert "no earlier champion" in ratchet("model", "rollback", "--why", "again", *where).one_line()
    ledger = Ledger(tmp_path / "registry" / "ledger.sqlite")
    assert (ledger.champion(), ledger.state(third.version)) == (first.version, State.CANDIDATE)
    assert {e.who for e in ledger.history(second.version)} == {"operator"}
    ledger.close()


def test_the_registry_keeps_what_it_names(toys: Toys, tmp_path: Path, versions: list[Bundle]) -> None:
    copy = Path(shutil.copytree(versions[1].path, tmp_path / "elsewhere"))
    ratchet("model", "add", copy, *_registry(tmp_path, toys))
    shutil.rmtree(copy)
    shown = ratchet("model", "show", versions[1].version, *_registry(tmp_path, toys), "--json").json()
    assert Path(shown["path"]).is_relative_to(tmp_path / "registry")
    assert shown["history"][-1]["state"] == "champion"


def test_a_server_that_is_away_changes_nothing(toys: Toys, tmp_path: Path, versions: list[Bundle]) -> None:
    where = _registry(tmp_path, toys)
    for bundle in versions[:2]:
        ratchet("model", "add", bundle.path, *where)
    force = ("--without-gate", "--why", "x", "--server", f"unix:{tmp_path}/none")
    assert "does not answer" in ratchet("model", "promote", versions[1].version, *force, *where).one_line()
    rows = ratchet("model", "ls", *where[:2], "--json").json()
    assert [r["state"] for r in rows] == ["champion", "candidate"]


def test_no_registry_and_unknown_versions_are_one_line(toys: Toys, tmp_path: Path) -> None:
    assert "no registry in" in ratchet("model", "ls", "--registry", tmp_path).one_line()
    assert "no registry in" in ratchet("model", "promote", "abc", "--name", "none").one_line()
    assert "is no directory" in ratchet("model", "show", "abc", "--keys", toys.keys).one_line()
    assert "train one with" in ratchet("model", "ls").err
    ratchet("model", "add", toys.bundle, *_registry(tmp_path, toys))
    assert "no version 'zzz'" in ratchet("model", "show", "zzz", *_registry(tmp_path, toys)).one_line()


# ---- LeRobot checkpoints ------------------------------------------------------------------------


@real
def test_a_lerobot_checkpoint_becomes_a_bundle_in_its_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_import, "_MADE_UP", 3)
    done = ratchet(
        "model", "import", CHECKPOINT, "--out", tmp_path / "b", "--keys", tmp_path / "k", "--robot", "so100",
        "--state-names", "a,b,c,d,e,f", "--rate", "20",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "quantised with made-up observations" in done.err
    manifest = Bundle.open(tmp_path / "b", TrustStore.load(tmp_path / "k")).manifest
    assert (manifest.robot, manifest.rate_hz) == ("so100", 20.0)
    assert (manifest.state_names, manifest.action_names[5]) == (tuple("abcdef"), "action_5")
    assert (manifest.chunk, manifest.execute) == (20, 10)
    with pytest.raises(WrongRobotError, match="not rad"):
        manifest.require("so100", manifest.state_names, manifest.cameras)


def _calibration() -> Calibration:
    rows = Calibration.identity(KOCH_FOLLOWER).joints.items()
    return Calibration(
        {
            joint: row.model_copy(update={"range_min": 700 + 50 * n, "range_max": 3300 - 20 * n})
            for n, (joint, row) in enumerate(rows)
        }
    )


@pytest.mark.parametrize("degrees", [False, True])
def test_in_rad_the_network_sees_what_it_saw_in_lerobots_units(degrees: bool) -> None:
    """LeRobot's `MotorsBus._normalize` against our `Calibration`, from the same ticks."""
    calibration = _calibration()
    rows = calibration.joints.values()
    low, high = np.array([r.range_min for r in rows]), np.array([r.range_max for r in rows])
    ticks = (low + (high - low) * np.array([0.3, 0.5, 0.7, 0.2, 0.9, 0.4])).astype(np.int64)
    theirs = (ticks - low) / (high - low) * 200 - 100
    if degrees:
        theirs = (ticks - (low + high) / 2) * 360 / 4095
    theirs[5] = (ticks[5] - low[5]) / (high[5] - low[5]) * 100
    mean, std = (3.0, -5.0, 10.0, 0.0, 20.0, 50.0), (10.0, 20.0, 30.0, 5.0, 15.0, 25.0)
    stats = FeatureStats(mean=mean, std=std)
    converted = checkpoint_import.in_rad(
        NormStats(state=stats, action=stats, images={}), calibration, degrees
    )
    for feature in (converted.state, converted.action):
        ours = (calibration.to_rad(ticks) - np.array(feature.mean)) / np.array(feature.std)
        np.testing.assert_allclose(ours, (theirs - np.array(mean)) / np.array(std), atol=1e-9)


@real
def test_with_the_calibration_it_is_a_kochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_import, "_MADE_UP", 3)
    _calibration().save(tmp_path / "koch.json")
    done = ratchet(
        "model", "import", CHECKPOINT, "--out", tmp_path / "b", "--keys", tmp_path / "k",
        "--calibration", tmp_path / "koch.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = Bundle.open(tmp_path / "b", TrustStore.load(tmp_path / "k")).manifest
    manifest.require("koch", KOCH_FEATURES, manifest.cameras)


@real
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--state-names", "a,b"], "has 2 names, the checkpoint 6 values"),
        (["--calibration", "none.json"], "there is no calibration none.json"),
        (["--store", "none"], "no episode store in none"),
        (["--rate", "nan"], "--rate"),
    ],
)
def test_mistakes_of_an_import_are_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    done = ratchet("model", "import", CHECKPOINT, "--out", tmp_path / "b", "--keys", tmp_path / "k", *options)
    assert expected in done.one_line()
    assert not (tmp_path / "b").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    line = ratchet("model", "import", tmp_path, "--out", tmp_path / "b", "--keys", tmp_path / "k").one_line()
    assert "config.json" in line


def test_a_key_that_is_no_longer_trusted_is_refused(toys: Toys, tmp_path: Path) -> None:
    write_public(KeyPair.generate().public, tmp_path / "t")
    assert "unknown key" in ratchet("model", "show", toys.bundle, "--trust", tmp_path / "t").one_line()
