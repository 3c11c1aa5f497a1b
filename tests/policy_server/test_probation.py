"""The test a bundle on probation is judged by, and the judge that counts for it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from policy_server.errors import ConfigError
from policy_server.probation import (
    ProbationConfig,
    bound_for,
    log_e_value,
    row_limit,
    run_chance,
    upper_bound,
)
from policy_server.standing import Standing, Trial, read_standing, write_standing
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


def _given_up(bound: float, rate: float, config: ProbationConfig) -> tuple[float, float]:
    """Exactly: chance that the judge gives up a bundle failing at ``rate``, and after how many episodes."""
    standing = Standing()
    judge = Judge(config, standing)
    given_up = soon = 0.0
    states = {(0, 0): 1.0}  # chance of (failures, failures in a row) so far
    for n in range(config.episodes):
        following: dict[tuple[int, int], float] = {}
        for (failures, row), chance in states.items():
            for failed, share in ((True, rate), (False, 1.0 - rate)):
                standing.trial = Trial(
                    version="new",
                    predecessor="old",
                    bound=bound,
                    episodes=n,
                    failures=failures,
                    row=row,
                    left_s=1.0,
                )
                standing.reported.clear()
                if judge.report("new", "e", failed, (), False) == "failed":
                    given_up += chance * share
                    soon += chance * share * (n + 1)
                    continue
                state = (failures + failed, row + 1 if failed else 0)
                following[state] = following.get(state, 0.0) + chance * share
        states = following
    return given_up, soon / given_up


@pytest.mark.parametrize("record", [(0, 0), (0, 12), (4, 40), (20, 40)])
def test_a_bundle_that_is_no_worse_is_given_up_with_at_most_alpha(record: tuple[int, int]) -> None:
    config = ProbationConfig()
    bound = bound_for(*record, config)
    # At the bound itself, the worst that is borne; the bound's own share is the third part.
    assert _given_up(bound, bound, config)[0] <= config.alpha * 2 / 3


def test_a_much_worse_bundle_is_given_up_soon() -> None:
    config = ProbationConfig()
    share, after = _given_up(bound_for(4, 40, config), 0.7, config)
    assert share > 0.95
    assert after <= 15


def test_a_row_is_as_long_as_chance_demands() -> None:
    assert run_chance(2, 3, 0.5) == pytest.approx(3 / 8)
    config = ProbationConfig()
    assert row_limit(0.1, config) == config.in_a_row
    assert row_limit(0.5, config) > config.in_a_row


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


def test_failures_in_a_row_end_it_at_once() -> None:
    judge = Judge(ProbationConfig(episodes=20, in_a_row=4, assumed_failures=0.18), Standing())
    judge.begin("new", "old")
    fine = [judge.report("new", f"f{i}", False, (), False) for i in range(8)]
    verdicts = [judge.report("new", f"e{i}", True, (), False) for i in range(4)]
    assert fine + verdicts == ["probation"] * 11 + ["failed"]
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
    assert judge.report("newer", "f1", False, (), False) == "probation"
    assert judge.report("newer", "f2", False, (), False) == "passed"
    judge.begin("newest", "newer")
    for i in range(2):
        judge.report("newest", f"g{i}", False, (), False)
    assert not judge.pass_time(30.0)
    assert judge.pass_time(31.0)


def test_time_does_not_pass_what_fails() -> None:
    standing = Standing()
    judge = Judge(ProbationConfig(episodes=8, minutes=1.0), standing)
    judge.begin("new", "old")
    for i in range(4):
        assert judge.report("new", f"e{i}", True, (), False) == "probation"
    assert not judge.pass_time(61.0)
    assert judge.report("new", "e4", False, (), False) == "probation"
    assert standing.trial is not None


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
