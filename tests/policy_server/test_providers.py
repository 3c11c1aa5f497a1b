"""A provider that is fast and wrong, or does not start: the next one is taken, and it is said why."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import grpc
import numpy as np
import onnxruntime as ort
import pytest
import tiny

from policies import fastest
from policies.engine import OPENVINO, PREFERRED, Provider, skipped
from policies.session import ChunkResult, OnnxSession
from policy_server.backends import open_session
from protos.ratchet.v1 import policy_pb2 as pb

TENSORRT, CUDA, CPU = PREFERRED


class OnFakes(OnnxSession):
    """Runs on the processor whatever it is told; what it is told decides how wrong its numbers are."""

    wrong: ClassVar[dict[str, float]]
    broken: ClassVar[dict[str, str]]
    opened: ClassVar[list[list[str]]]

    def __init__(self, bundle: Any, precision: Any, threads: int, spinning: bool, on: list[Provider]) -> None:
        names = [name for name, _ in on]
        self.opened.append(names)
        if names[0] in self.broken:
            raise RuntimeError(self.broken[names[0]])
        super().__init__(bundle, precision, threads, spinning, [(CPU, {})])
        self.providers = tuple(names)

    def infer(self, state: Any, images: Any) -> ChunkResult:
        right = super().infer(state, images)
        off = np.float32(self.wrong.get(self.providers[0], 0.0))
        return ChunkResult(right.actions + off, right.features)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[OnFakes]:
    """A machine that offers every provider."""

    monkeypatch.setattr(ort, "get_available_providers", lambda: [*PREFERRED, "AzureExecutionProvider"])
    monkeypatch.setattr(fastest, "OnnxSession", OnFakes)
    OnFakes.wrong, OnFakes.broken, OnFakes.opened = {}, {}, []
    return OnFakes


def test_the_fastest_is_kept_when_it_is_right(place, fakes) -> None:
    session = open_session(place.bundle("a"), "onnx", 1, spinning=False)
    assert (fakes.opened, session.passed_over) == ([list(PREFERRED)], ())


@pytest.mark.parametrize("off", [0.5, float("nan")])
def test_wrong_numbers_fall_back_one_provider_at_a_time(place, fakes, off: float) -> None:
    fakes.wrong = {TENSORRT: off}
    session = open_session(place.bundle("a"), "onnx", 1, spinning=False)
    assert fakes.opened == [[TENSORRT, CUDA, CPU], [CUDA, CPU]]
    (reason,) = session.passed_over
    assert reason.startswith(f"{TENSORRT}: ")
    assert "golden vectors" in reason


@pytest.mark.skipif(OPENVINO in skipped(), reason=f"no OpenVINO: {skipped()}")
def test_int8_runs_in_openvino(place, fakes) -> None:
    session = open_session(place.bundle("a"), "onnx-int8", 1, spinning=False)
    assert (session.providers, fakes.opened, session.passed_over) == ((OPENVINO,), [], ())


@pytest.mark.skipif(OPENVINO in skipped(), reason=f"no OpenVINO: {skipped()}")
def test_int8_goes_to_onnx_runtime_s_processor_when_openvino_is_wrong_or_broken(
    place, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_class = pytest.importorskip("policies.openvino_session").OpenVinoSession
    right = session_class.infer

    def wrong(self: Any, state: Any, images: Any) -> ChunkResult:
        found = right(self, state, images)
        return ChunkResult(found.actions + np.float32(0.5), found.features)

    monkeypatch.setattr(session_class, "infer", wrong)
    session = open_session(place.bundle("a"), "onnx-int8", 1, spinning=False)
    assert fakes.opened == [[CPU]]
    assert session.passed_over[0].startswith(f"{OPENVINO}: ")
    assert "golden vectors" in session.passed_over[0]

    def broken() -> None:
        raise RuntimeError("no such plugin: CPU\n  at somewhere")

    monkeypatch.setattr("policies.openvino_session.openvino.Core", broken)
    session = open_session(place.bundle("b"), "onnx-int8", 1, spinning=False)
    assert session.passed_over == (f"{OPENVINO}: no such plugin: CPU",)


def test_a_provider_that_onnx_runtime_leaves_out_is_named(place, monkeypatch: pytest.MonkeyPatch) -> None:
    # ONNX Runtime itself drops what it cannot start and goes on.
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PREFERRED))
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, providers: real(*a, providers=[CPU]))
    session = open_session(place.bundle("a"), "onnx", 1, spinning=False)
    assert [reason.partition(":")[0] for reason in session.passed_over] == [TENSORRT, CUDA]
    assert "does not start" in session.passed_over[0]


async def test_the_server_serves_right_numbers_and_says_what_was_passed_over(
    place, running, fakes, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.wrong, fakes.broken = {TENSORRT: 0.5}, {CUDA: "CUDA failure 35: driver too old"}
    a = place.bundle("a")
    with caplog.at_level(logging.WARNING):
        async with running(place.config(bundle=a.path)) as run:
            answer = await run.stub.Infer(tiny.make_request(), timeout=5)
            now = await run.stub.Status(pb.StatusRequest(), timeout=5)
    assert answer.version == a.version
    (event,) = [event for event in now.events if event.kind == "slower provider"]
    assert event.version == a.version
    for words in (TENSORRT, "golden vectors", CUDA, "driver too old"):
        assert words in event.reason
        assert words in caplog.text


async def test_a_bundle_that_is_wrong_everywhere_is_refused(place, running, fakes) -> None:
    a, b = place.bundle("a"), place.bundle("b", 1.0, golden_offset=0.0)
    async with running(place.config(bundle=a.path)) as run:
        with pytest.raises(grpc.aio.AioRpcError, match="golden vectors"):
            await run.stub.Load(pb.LoadRequest(path=str(b.path), activate=True), timeout=30)
        assert fakes.opened[-3:] == [[TENSORRT, CUDA, CPU], [CUDA, CPU], [CPU]]
