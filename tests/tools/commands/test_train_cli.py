"""`ratchet train`: a signed bundle and its place in the registry, or one line and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import TINY, Toys, interrupt, ratchet, record, running, short_of_disk, toy_store

from episodes.store import EpisodeStore
from learner.ledger import Ledger
from policies.bundle import Bundle
from policies.keys import TrustStore
from policies.manifest import KOCH_FEATURES
from tools import training
from tools.offline import TRAINED_ON


def test_the_bundle_says_what_it_drives_and_what_it_was_trained_on(toys: Toys) -> None:
    manifest = Bundle.open(toys.bundle, TrustStore.load(toys.keys)).manifest
    assert (manifest.robot, manifest.action_convention.unit) == ("koch", "rad")
    assert manifest.state_names == manifest.action_names == KOCH_FEATURES
    assert manifest.rate_hz == 30.0
    assert len(manifest.training[TRAINED_ON]) == 4
    assert not toys.bundle.with_name("bundle.training").exists(), "checkpoints of a finished run are gone"


def test_the_first_is_champion_the_next_a_candidate(toys: Toys, tmp_path: Path) -> None:
    for number, standing in enumerate(("champion", "candidate")):
        done = ratchet(
            "train", "--store", toys.store, "--out", tmp_path / f"b{number}", "--keys", toys.keys,
            "--steps", 2, "--set", f"seed={number}", "--name", "cube", *TINY, "--json",
        ).json()  # fmt: skip
        assert done["registered"] == standing
        assert done["parity"]["fp32_error"] <= done["parity"]["fp32_tolerance"]
        registry = tmp_path / "home" / ".local" / "share" / "ratchet" / "cube"
        assert Path(done["registry"]) == registry
        assert (registry / "bundles" / done["bundle"] / "manifest.json").exists()
        assert (Ledger(registry / "ledger.sqlite").champion() == done["bundle"]) == (standing == "champion")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "bach=3"], "unknown key 'bach'; did you mean 'batch'?"),
        (["--set", "gaps=split"], "unknown key 'gaps'; did you mean 'data.gaps'?"),
        (["--set", "chunck=3"], "unknown key 'chunck'; did you mean 'chunk'?"),
        (["--set", "batch"], "'batch' is not key=value"),
        (["--set", "batch=many"], "key 'batch'"),
        (["--set", "chunk=0"], "'chunk': input should be greater than or equal to 1"),
        (["--set", "dim=36"], "the data do not fit the network"),
        (["--set", "backbone=resnet34"], "'backbone': input should be 'resnet18' or 'efficientnet_lite0'"),
        (["--set", "backbone=efficientnet_lite0", "--set", "backbone_width=16"], "has one size"),
        (["--pretrained", "none.pth"], "with pretrained weights; check the path"),
        (["--where", "id = 'none'"], "no episode of"),
        (["--where", "ticks >"], "syntax error"),
        (["--resume"], "no unfinished run"),
        (["--image-size", "8x8"], "do not fit the network"),
        (["--config", "none.toml"], "no configuration at none.toml"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    toys: Toys, tmp_path: Path, options: list[str], expected: str
) -> None:
    done = ratchet(
        "train",
        "--store",
        toys.store,
        "--out",
        tmp_path / "b",
        "--no-register",
        "--keys",
        toys.keys,
        *options,
    )
    assert expected in done.one_line()
    assert not (tmp_path / "b").exists()
    # The same command, put right, starts afresh.
    assert "unfinished" not in ratchet("train", "--store", "none", "--out", tmp_path / "b").one_line()


def test_an_unknown_key_in_a_file_guesses_what_was_meant(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[jitter]\nbrightnes = 0.1\n")
    wanted = ("train", "--store", toys.store, "--out", tmp_path / "b", "--config", tmp_path / "c.toml")
    assert "unknown key 'jitter.brightnes'; did you mean 'brightness'?" in ratchet(*wanted).one_line()
    (tmp_path / "c.toml").write_text("[model.overrides]\nchunks = 3\n")
    assert "did you mean 'chunk'?" in ratchet(*wanted).one_line()


def test_a_missing_store_an_existing_bundle_and_another_robot(toys: Toys, tmp_path: Path) -> None:
    assert (
        "no episode store" in ratchet("train", "--store", tmp_path / "x", "--out", tmp_path / "b").one_line()
    )
    assert "give --store" in ratchet("train", "--out", tmp_path / "b").one_line()
    assert "bundles never change" in ratchet("train", "--store", toys.store, "--out", toys.bundle).one_line()
    with EpisodeStore.open(tmp_path / "s") as store:
        record(store, "slow", fps=30.0)
        record(store, "slower", fps=29.0)
    mixed = ratchet("train", "--store", tmp_path / "s", "--out", tmp_path / "b", "--no-register")
    assert "rate_hz" in mixed.one_line()


def test_gaps_are_refused_with_the_settings_that_accept_them(toys: Toys, tmp_path: Path) -> None:
    store = toy_store(tmp_path / "s", 2)
    with EpisodeStore.open(store) as opened:
        record(opened, "gap", skip=(9, 10))
    wanted = ("train", "--store", store, "--out", tmp_path / "b", "--no-register", "--keys", toys.keys,
              "--steps", 2, *TINY)  # fmt: skip
    line = ratchet(*wanted).one_line()
    assert "episode gap has 1 gaps" in line
    assert "--set data.gaps=split" in line
    assert ratchet(*wanted, "--set", "data.gaps=split").code == 0


def test_ctrl_c_leaves_a_checkpoint_that_resume_continues(toys: Toys, tmp_path: Path) -> None:
    out = tmp_path / "b"
    wanted = ("train", "--store", toys.store, "--out", out, "--no-register", "--keys", toys.keys)
    folder = out.with_name("b.training")
    settings = ("--steps", 100_000, *TINY, "--set", "checkpoint_every=1000000")
    with running(folder / "run.json", *wanted, *settings) as process:
        time.sleep(1.0)
        code, err = interrupt(process)
    assert code == 130, err
    assert f"go on with: ratchet train --out {out} --resume" in err
    assert "Traceback" not in err
    assert (folder / "checkpoint.safetensors").exists()
    assert "continue it with --resume" in ratchet(*wanted).one_line()
    other = ratchet(*wanted, "--resume", "--steps", 7)
    assert "begun with another value of the settings" in other.one_line()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("--store", toys.store, "--no-register", "--keys", toys.keys, "--steps", 20, *TINY)
    straight = ratchet("train", "--out", tmp_path / "straight", *wanted, "--json").json()

    @contextlib.contextmanager
    def after_seven() -> Iterator[Callable[[], bool]]:
        steps = itertools.count(1)
        yield lambda: next(steps) == 7

    out = tmp_path / "b"
    with monkeypatch.context() as patched:
        patched.setattr(training, "_interruptible", after_seven)
        stopped = ratchet("train", "--out", out, *wanted)
    assert stopped.code == 130
    assert "stopped after step 7 of 20" in stopped.err
    resumed = ratchet("train", "--out", out, "--resume", "--no-register", "--keys", toys.keys, "--json")
    assert resumed.json()["loss"] == pytest.approx(straight["loss"], rel=1e-4)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "straight")]
    assert weights[0] == weights[1]


def test_a_full_disk_is_one_line_and_no_bundle(toys: Toys, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same calls fail."""
    done = short_of_disk(
        200_000, "train", "--store", toys.store, "--out", tmp_path / "b", "--no-register",
        "--keys", toys.keys, "--steps", 2, *TINY,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ratchet: "), line
    assert "free some space" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()
