"""The yardstick computes what the policy computes; every form is timed as often as the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.act import ACT
from policies.config import IMAGENET_MEAN, IMAGENET_STD, CameraShape, FeatureStats, NormStats, act_full
from policies.export import ServedACT
from policies.normalise import Normaliser
from tools.bench import inference
from tools.bench.inference_peer import LeRobotACT
from tools.errors import UsageError


def test_the_peer_gives_the_actions_of_the_served_network() -> None:
    cameras = tuple(CameraShape(name=name, height=64, width=96) for name in ("front", "wrist"))
    config = act_full(cameras).model_copy(
        update={"dim": 64, "heads": 4, "ffn": 64, "chunk": 10, "execute": 5}
    )
    torch.manual_seed(0)
    model = ACT(config).eval()
    stats = NormStats(
        state=FeatureStats(mean=(0.2,) * 6, std=(0.5,) * 6),
        action=FeatureStats(mean=(-0.1,) * 6, std=(0.3,) * 6),
        images={c.name: FeatureStats(mean=IMAGENET_MEAN, std=IMAGENET_STD) for c in cameras},
    )
    rng = np.random.default_rng(0)
    state = torch.from_numpy(rng.normal(size=(1, 6)).astype(np.float32))
    images = [torch.from_numpy(rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)) for _ in cameras]
    with torch.inference_mode():
        expected, _ = ServedACT(model, Normaliser(stats, config)).eval()(state, *images)
        for dtype in (torch.float32, torch.float64):
            peer = LeRobotACT(model, stats, dtype)
            pictures = {c.name: image[0] for c, image in zip(cameras, images, strict=True)}
            actual = peer(*peer.inputs(state[0], pictures))
            torch.testing.assert_close(actual.float(), expected, atol=1e-5, rtol=1e-4)


def test_forms_take_turns_to_be_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "PAUSE_S", 0.0)
    ran: list[str] = []
    forms = {name: (lambda name=name: ran.append(name)) for name in ("a", "b", "c")}
    times = inference._rounds(forms, seconds=0.0)
    measured = ran[9:]
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys("abc", inference.LEAST_ROUNDS)
    assert measured[:9] == list("abcbcacab")


@pytest.mark.parametrize("size", ["640", "640x", "10x10", "axb", "640x480x3"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="WxH"):
        inference._parsed(size)
