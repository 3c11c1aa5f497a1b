"""Where a policy runs: the best provider there is, and a name for each that is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from policies import engine
from policies.bundle import Bundle
from policies.fastest import open_fastest
from policies.golden import action_error, check_golden
from policies.session import OnnxSession
from policies.torch_session import TorchSession
from tests.policies.conftest import TINY, make_batch

ROOT = Path(__file__).parents[2]
GPU_PROVIDERS = [name for name in engine.PREFERRED[:-1] if name in ort.get_available_providers()]


def test_the_best_provider_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["CPUExecutionProvider", "AzureExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    names = [name for name, _ in engine.providers("fp32")]
    assert names == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert [name for name, _ in engine.providers("int8")] == ["OpenVINO", "CPUExecutionProvider"]
    assert list(engine.skipped()) == ["TensorrtExecutionProvider"]


def test_without_openvino_onnx_runtime_runs_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor it is not used on, and where it is not installed."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert [name for name, _ in engine.providers("int8")] == ["CPUExecutionProvider"]
    assert "aarch64" in engine.skipped()["OpenVINO"]
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [name for name, _ in engine.providers("int8")] == ["CPUExecutionProvider"]
    assert "pip install openvino" in engine.skipped()["OpenVINO"]


def test_what_is_missing_is_named(exported: Bundle) -> None:
    """Every preferred provider is either used or skipped by name."""
    used = OnnxSession(exported).providers
    left_out = {name: why for name, why in engine.skipped().items() if name != engine.OPENVINO}
    assert set(engine.PREFERRED) == set(used) | set(left_out)
    assert all("onnxruntime" in reason for reason in left_out.values())


@pytest.mark.skipif(engine.OPENVINO in engine.skipped(), reason=f"no OpenVINO: {engine.skipped()}")
def test_openvino_answers_as_onnx_runtime_does(exported: Bundle) -> None:
    """The same integers: both are off by rounding of their own, less than what int8 itself costs."""
    fast, known = open_fastest(exported, "int8"), OnnxSession(exported, "int8")
    assert fast.providers == (engine.OPENVINO,)
    assert fast.passed_over == ()
    for batch in (1, 3):
        state, images = make_batch(TINY, batch, seed=batch)
        one, other = fast.infer(state, images), known.infer(state, images)
        assert one.actions.shape == other.actions.shape == (batch, fast.chunk, TINY.action_dim)
        assert one.features.shape == other.features.shape
        off = action_error(exported.manifest, "int8", one.actions, other.actions)
        assert off <= exported.manifest.parity.int8_tolerance


def test_openvino_keeps_no_answer_of_the_run_before(exported: Bundle) -> None:
    session = open_fastest(exported, "int8")
    state, images = make_batch(TINY, 1, seed=1)
    for image in images.values():
        image.setflags(write=False)  # as a client's pictures are, in its own memory
    first = session.infer(state, images)
    kept = first.actions.copy()
    session.infer(*make_batch(TINY, 1, seed=2))
    np.testing.assert_array_equal(first.actions, kept)


def test_a_session_says_how_long_its_answers_are(exported: Bundle) -> None:
    for session in (OnnxSession(exported), TorchSession(exported)):
        assert session.infer(*make_batch(TINY, 2)).actions.shape == (2, session.chunk, TINY.action_dim)


@pytest.mark.skipif(not GPU_PROVIDERS, reason=f"no GPU provider: {engine.skipped()}")
def test_the_float_form_passes_its_golden_vectors_on_a_gpu(exported: Bundle) -> None:
    session = OnnxSession(exported)
    assert session.providers[0] in GPU_PROVIDERS
    check_golden(session, exported)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here: no CUDA graphs")
def test_cuda_graphs_give_each_observation_its_own_answer(exported: Bundle) -> None:
    """A graph's outputs are one place in memory: the second run must not change the first's answer."""
    session = TorchSession(exported, compile=True)
    check_golden(session, exported)
    first = session.infer(*make_batch(TINY, 1, seed=1))
    kept = first.actions.copy()
    session.infer(*make_batch(TINY, 1, seed=2))
    np.testing.assert_array_equal(first.actions, kept)


def test_engines_tell_nobody_of_their_use(tmp_path: Path) -> None:
    """By default ONNX Runtime and OpenVINO report to their makers, and keep numbers for that below HOME."""
    program = (
        "import multiprocessing\n"
        "def never(*_): raise SystemExit('it wanted to call out')\n"
        "multiprocessing.Process.start = never\n"
        "import policies.export, policies.engine as e\n"
        "if e.OPENVINO not in e.skipped(): import policies.openvino_session\n"
    )
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "numba" not in path.parts]
    assert left == []
