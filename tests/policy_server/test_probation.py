"""The test a bundle on probation is judged by, and the judge that counts for it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ConfigError
from policy_server.probation import ProbationConfig, bound_for, log_e_value, log_limit, upper_bound
from policy_server.standing import Standing, read_standing, write_standing
from policy_server.trial import Judge

CONFIG = ProbationConfig(episodes=30, in_a_row=100)


@pytest.mark.parametrize(
    ("failures", "episodes", "alpha", "expected"),
    # Clopper and Pearson's limits as scipy.stats.beta.ppf(1 - alpha, f + 1, n - f) gives them.
    [(2, 40, 0.025, 0.16920), (0, 50, 0.025, 0.07112), (5, 10, 0.05, 0.77756), (10, 10, 0.05, 1.0)],
)
def test_the_upper_bound_is_clopper_and_pearsons(failures, episodes, alpha, expected: float) -> None:
    assert upper_bound(failures, episodes, alpha) == pytest.approx(expected, abs=2e-5)


def test_the_e_value_is_one_on_average_at_the_bound() -> None:
    # Exactly, by summing over all outcomes of 12 episodes: an e-value under its least favourable null.
    bound, n = 0.2, 12
    mean = sum(
        math.comb(n, f) * bound**f * (1 - bound) ** (n - f) * math.exp(log_e_value(f, n, bound))
        for f in range(n + 1)
    )
    assert mean == pytest.approx(1.0, abs=1e-9)


def _given_up(rate: float, runs: int, seed: int) -> tuple[float, float]:
    """Share of runs in which the bundle is given up when one looks after every episode, and how soon."""
    rng = np.random.default_rng(seed)
    soon = []
    for _ in range(runs):
        history = int(rng.binomial(40, 0.1))
        bound = bound_for(history, 40, CONFIG)
        failures = np.cumsum(rng.random(CONFIG.episodes) < rate)
        for n, f in enumerate(failures, 1):
            if log_e_value(int(f), n, bound) >= log_limit(CONFIG):
                soon.append(n)
                break
    return len(soon) / runs, float(np.median(soon)) if soon else math.inf


def test_a_bundle_that_is_no_worse_is_rarely_given_up_and_a_much_worse_one_soon() -> None:
    assert _given_up(0.1, runs=400, seed=1)[0] <= CONFIG.alpha
    share, after = _given_up(0.7, runs=150, seed=2)
    assert share > 0.95
    assert after <= 15


def test_episodes_are_counted_once_and_only_under_one_version() -> None:
    standing = Standing()
    judge = Judge(CONFIG, standing)
    judge.begin("new", "old")
    assert judge.report("new", "e1", True, (), False) == "probation"
    assert judge.report("new", "e1", True, (), False) == ""
    assert judge.report("new", "e2", True, (), True) == ""
    assert judge.report("old", "e3", False, ("lost_replies",), False) == ""
    assert judge.report("new", "e4", False, ("stall",), False) == "probation"
    assert (standing.trial.episodes, standing.trial.failures) == (2, 2)
    assert standing.records["old"].failures == 0


def test_failures_in_a_row_end_it_at_once_without_any_history() -> None:
    judge = Judge(ProbationConfig(in_a_row=4, alpha=0.001), Standing())
    judge.begin("new", "old")
    verdicts = [judge.report("new", f"e{i}", True, (), False) for i in range(4)]
    assert verdicts == ["probation"] * 3 + ["failed"]
    assert "4 in a row" in judge.reason


def test_it_passes_after_its_episodes_or_its_time() -> None:
    standing = Standing()
    judge = Judge(ProbationConfig(episodes=3, minutes=1.0), standing)
    judge.begin("new", "old")
    verdicts = [judge.report("new", f"e{i}", False, (), False) for i in range(3)]
    assert verdicts == ["probation", "probation", "passed"]
    assert standing.trial is None
    judge.begin("newer", "new")
    assert not judge.pass_time(61.0)  # nothing was seen yet
    assert judge.report("newer", "f1", False, (), False) == "passed"
    judge.begin("newest", "newer")
    judge.report("newest", "g1", False, (), False)
    assert not judge.pass_time(30.0)
    assert judge.pass_time(31.0)


def test_what_is_kept_comes_back_and_damage_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    standing = read_standing(path)
    judge = Judge(CONFIG, standing)
    judge.begin("new", "old")
    judge.bar("bad", "5 of 6 failed", by_server=True)
    write_standing(path, standing.model_dump_json())
    assert read_standing(path) == standing
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ConfigError, match="move it away"):
        read_standing(path)
