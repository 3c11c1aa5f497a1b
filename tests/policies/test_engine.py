"""Where a policy runs: the best provider there is, and a name for each that is not."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from policies import engine
from policies.bundle import Bundle
from policies.golden import check_golden
from policies.session import OnnxSession
from policies.torch_session import TorchSession
from tests.policies.conftest import TINY, make_batch

GPU_PROVIDERS = [name for name in engine.PREFERRED[:-1] if name in ort.get_available_providers()]


def test_the_best_provider_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["CPUExecutionProvider", "AzureExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    names = [name for name, _ in engine.providers("fp32")]
    assert names == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert [name for name, _ in engine.providers("int8")] == ["CPUExecutionProvider"]
    assert list(engine.skipped()) == ["TensorrtExecutionProvider"]


def test_what_is_missing_is_named(exported: Bundle) -> None:
    """Every preferred provider is either used or skipped by name."""
    used = OnnxSession(exported).providers
    assert set(engine.PREFERRED) == set(used) | set(engine.skipped())
    assert all("onnxruntime" in reason for reason in engine.skipped().values())


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
