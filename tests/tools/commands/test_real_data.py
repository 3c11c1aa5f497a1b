"""A real dataset all the way: import, train, evaluate offline, serve, ask. See docs/real_data.md."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import FIXTURES, TINY, interrupt, ratchet, running

V21, V30 = FIXTURES / "cr5_pick_v21", FIXTURES / "cr5_pick_v30"
pytestmark = pytest.mark.skipif(
    not V21.is_dir() or not V30.is_dir(), reason=f"no LeRobot datasets in {FIXTURES}"
)
INDEX = "CAST(json_extract(provenance, '$.episode_index') AS INT)"


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [V21, V30], ids=["v2.1", "v3.0"])
def test_from_a_dataset_to_a_served_policy(dataset: Path, tmp_path: Path) -> None:
    store, bundle, keys = tmp_path / "episodes", tmp_path / "bundle", ("--keys", tmp_path / "keys")
    done = ratchet(
        "episodes",
        "import",
        dataset,
        "--store",
        store,
        "--image-size",
        "48x64",
        "--episodes",
        "5,12,18",
        "--json",
    ).json()
    assert done["frames"] == 628
    trained = ratchet(
        "train", "--store", store, "--where", f"{INDEX} < 16", "--out", bundle, "--steps", 12, *TINY,
        "--set", "data.max_gap_ticks=3", "--no-register", *keys,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "robot cr5, 7 actions (as recorded), chunk 8, cameras top 48x64" in trained.out
    result = _offline(bundle, store, f"{INDEX} >= 16", tmp_path)
    assert (result["episodes"], result["samples"], result["trained_on"]) == (1, 221, 0)
    assert result["action_names"][-1] == "gripper"
    # Facts about the data, whatever the policy: repeating the last action is hard to beat at first.
    assert result["last_action"]["per_step"][0] < 0.05 < result["last_action"]["per_step"][7]
    assert np.isfinite(result["policy"]["mean"])
    assert _offline(bundle, store, "true", tmp_path)["trained_on"] == 2
    with tempfile.TemporaryDirectory(prefix="rr") as short:
        address = f"unix:{short}/s"
        with running(Path(short) / "s", "serve", bundle, "--address", address, *keys) as server:
            episode = done["imported"]["18"]
            answer = ratchet(
                "model", "ask", address, "--store", store, "--episode", episode, "--step", 50, "--json"
            ).json()
            assert np.shape(answer["actions"]) == (8, 7)
            assert np.isfinite(answer["actions"]).all()
            code, err = interrupt(server)
    assert code == 0, err


def _offline(bundle: Path, store: Path, where: str, tmp_path: Path) -> dict:
    done = ratchet(
        "evaluate", bundle, "--offline", "--store", store, "--where", where,
        "--trust", tmp_path / "keys", "--json", tmp_path / "offline.json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "repeat last action" in done.out
    result = json.loads((tmp_path / "offline.json").read_text())
    assert ("trained on" in done.err) == bool(result["trained_on"])
    return result
