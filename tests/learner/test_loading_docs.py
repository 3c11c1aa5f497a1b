"""The example of docs/loading.md runs as it stands there, and gives what the table above it promises."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import make_store

DOCS = Path(__file__).parents[2] / "docs" / "loading.md"


def test_the_example_runs_and_gives_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "episodes", demos=2, corrections=0).close()
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert code.rstrip().endswith("...")
    ran: dict[str, Any] = {}
    exec(code.replace("...", "break"), ran)
    data, batch = ran["data"], ran["batch"]
    states, actions = data.state_dim, data.action_dim
    assert batch.state.shape == (32, 2, states)
    assert batch.actions.shape == (32, 100, actions)
    sample = data[0]
    assert sample["observation.state"].shape == (2, states)
    assert sample["observation.is_pad"].tolist() == [True, False]
    assert sample["observation.images.front"].shape == (2, 240, 320, 3)
    assert (sample["action"].shape, sample["action_is_pad"].shape) == ((100, actions), (100,))
    torchs = torch.utils.data.DataLoader(data, batch_sampler=ran["sampler"])
    (first,) = islice(torchs, 1)
    assert first["observation.state"].shape == (32, 2, states)
    assert first["action"].shape == (32, 100, actions)
