"""Checkpoints are whole or absent, written behind training, and continued to the bit after SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from learner_helpers import tiny_config
from safetensors.torch import load_file

from learner.checkpoint import CheckpointWriter, load_checkpoint
from learner.data import Dataset
from learner.errors import CheckpointError
from learner.train import train

HERE = Path(__file__).parent


def test_the_file_is_what_the_safetensors_package_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).t(),  # not contiguous
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "half": torch.randn(6).bfloat16(),
        "count": torch.tensor([2**40]),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "double": torch.tensor([1e-300], dtype=torch.float64),
    }
    with CheckpointWriter(tmp_path, "run") as writer:
        writer.save(tensors, 5)
    read = load_file(tmp_path / "checkpoint.safetensors")
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value), name
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[1] == 5


def test_saving_does_not_wait_for_the_disk_and_keeps_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = torch.zeros(4)
    with CheckpointWriter(tmp_path, "run") as writer:
        writer.save({"a": value}, 1)
        writer.wait()
        disk, sync = threading.Event(), os.fsync

        def slow(file: int) -> None:
            assert disk.wait(10)
            sync(file)

        monkeypatch.setattr("learner.checkpoint.os.fsync", slow)
        value += 1
        writer.save({"a": value}, 2)
        value += 1  # training goes on in the same memory
        before = load_checkpoint(tmp_path, "run")
        assert before is not None
        assert before[1] == 1
        disk.set()
    after = load_checkpoint(tmp_path, "run")
    assert after is not None
    assert after[1] == 2
    assert torch.equal(after[0]["a"], torch.ones(4))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(tmp_path, "run")
    writer.save({"a": torch.zeros(2)}, 1)
    writer.wait()
    monkeypatch.setattr("learner.checkpoint.os.fsync", full)
    writer.save({"a": torch.ones(2)}, 2)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        writer.wait()
    assert "\n" not in str(caught.value)
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[1] == 1


_KILLED = """
import os, sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
import torch
import learner.checkpoint as checkpoint
from learner.data import Dataset
from learner.train import train
from learner_helpers import episode
from test_checkpoints import everything

torch.set_num_threads(1)
sync, files = os.fsync, []

def stuck(file):
    # The second checkpoint's bytes are written, but not yet under its name: here the process is killed.
    if os.readlink(f"/proc/self/fd/{{file}}").endswith(".partial"):
        files.append(file)
        if len(files) == 2:
            print("saving", flush=True)
            time.sleep(60)
    sync(file)

checkpoint.os.fsync = stuck
data = Dataset.build([episode(seed) for seed in range(12)], everything().data)
train(data, everything(), folder=Path({folder!r}))
"""


def everything() -> object:
    """A run with dropout, accumulation, averaged weights and recomputed activations."""
    model = tiny_config().model
    overrides = {**model.overrides, "dropout": 0.1}
    return tiny_config(
        steps=14, batch=4, accumulate=2, recompute=True, checkpoint_every=5,
        model=model.model_copy(update={"overrides": overrides}),
    )  # fmt: skip


def test_a_run_killed_while_it_saves_ends_with_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    code = _KILLED.format(here=str(HERE), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "checkpoint.safetensors.partial").exists()
    config = everything()
    steps: list[int] = []
    resumed = train(dataset, config, folder=tmp_path, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 10, "went on from step 5, and reports every five"
    straight = train(dataset, config)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert not (tmp_path / "checkpoint.safetensors.partial").exists()
