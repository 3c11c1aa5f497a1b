"""`--set`: every key lands where it belongs, or is refused with a guess."""

from __future__ import annotations

import contextlib

import pytest

from tools.errors import UsageError
from tools.settings import setting_keys, train_config


def test_keys_land_where_they_belong() -> None:
    config = train_config(
        {"steps": 5, "data": {"gaps": "split"}},
        ["batch=64", "lr=1e-3", "data.image_size=[96, 128]", "jitter.brightness=0", "chunk=16",
         "use_vae=false", "model.preset=full", "resize=[48,64]"],
    )  # fmt: skip
    assert (config.steps, config.batch, config.lr) == (5, 64, 1e-3)
    assert (config.data.gaps, config.data.image_size) == ("split", (96, 128))
    assert config.jitter.brightness == 0.0
    assert config.model.preset == "full"
    assert config.model.overrides == {"chunk": 16, "use_vae": False, "resize": (48, 64)}


def test_the_last_one_wins() -> None:
    assert train_config({"batch": 2}, ["batch=3", "batch=4"]).batch == 4


def test_every_listed_key_is_taken() -> None:
    for key in setting_keys():
        with contextlib.suppress(UsageError):  # 1 may be no value for it
            train_config({}, [f"{key}=1"])
            continue
        with pytest.raises(UsageError) as caught:
            train_config({}, [f"{key}=1"])
        assert "unknown key" not in str(caught.value), key


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("stesp=3", "did you mean 'steps'?"),
        ("image_size=3", "did you mean 'data.image_size'?"),
        ("dims=3", "did you mean 'dim'?"),
        ("cameras=3", "did you mean 'data.cameras'?"),
        ("model.overrides=3", "unknown key 'model.overrides'"),
        ("zzzzzzzzzz=3", "known: seed, steps"),
        ("=3", "is not key=value"),
        ("steps=0", "key 'steps'"),
        ("heads=0", "'heads': input should be greater than or equal to 1"),
        ("dim=6", "'dim': input should be"),
        ("activation=tanh", "'activation'"),
        ("use_vae=perhaps", "'use_vae'"),
    ],
)
def test_what_is_wrong_is_said(setting: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_config({}, [setting])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
