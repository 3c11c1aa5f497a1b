"""Which rig a row gets: the one there is while it lives and fits, a new one otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.errors import UsageError
from tools.faults.rig import Served
from tools.faults.rigs import Rigs
from tools.faults.table import ROWS

SHARED = next(row for row in ROWS if row.rig == "shared" and not row.needs())
OWN = next(row for row in ROWS if row.rig == "own")
STATUS = 3


class StandInRig:
    """A rig without processes: it lives until it is killed or stopped."""

    made: list[StandInRig]

    def __init__(self, directory: Path, policy: Served | None, **_: object) -> None:
        self.directory, self.policy = directory, policy
        self.alive = True
        self.stopped = 0
        self.episodes = 0
        self.made.append(self)

    def stop(self) -> int:
        self.alive = False
        self.stopped += 1
        return STATUS


async def one_episode(rig: Any) -> None:
    rig.episodes += 1


@pytest.fixture
def rigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rigs:
    monkeypatch.setattr(StandInRig, "made", [], raising=False)
    monkeypatch.setattr("tools.faults.rigs.Rig", StandInRig)
    monkeypatch.setattr("tools.faults.rigs.preloaded", lambda _: {})
    monkeypatch.setattr("tools.faults.rigs._first_episode", one_episode)
    served = [Served(tmp_path / "bundle", tmp_path / "trust")]
    return Rigs(tmp_path, served.pop)


def test_a_rig_that_lives_is_used_again(rigs: Rigs) -> None:
    first: Any = rigs.rig(SHARED)
    again: Any = rigs.rig(SHARED)
    assert again is first
    assert (first.episodes, first.stopped, rigs.statuses) == (1, 0, [])


def test_a_rig_that_has_died_is_cleared_away_and_replaced(rigs: Rigs) -> None:
    first: Any = rigs.rig(SHARED)
    first.alive = False
    second: Any = rigs.rig(SHARED)
    assert second is not first
    assert second.directory != first.directory
    assert (second.alive, second.episodes) == (True, 1)
    assert second.policy is first.policy, "the policy is asked for once"
    assert first.stopped == 1
    assert rigs.statuses == [], "it ended by itself: that is no exit status of ours"
    rigs.stop()
    assert (second.stopped, rigs.statuses) == (1, [STATUS])
    rigs.stop()
    assert (second.stopped, rigs.statuses) == (1, [STATUS])


def test_a_row_that_needs_another_kind_of_rig_gets_one(rigs: Rigs) -> None:
    first: Any = rigs.rig(SHARED)
    own: Any = rigs.rig(OWN)
    assert own is not first
    assert own.policy is None
    assert (first.stopped, rigs.statuses) == (1, [STATUS])


def test_a_rig_without_its_first_episode_is_nobodys(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_moves(_: Any) -> None:
        raise UsageError("the arm does not move")

    with monkeypatch.context() as patch:
        patch.setattr("tools.faults.rigs._first_episode", nothing_moves)
        with pytest.raises(UsageError):
            rigs.rig(SHARED)
        (spent,) = StandInRig.made
        assert not spent.alive
        seen = rigs.run(SHARED)
        assert (seen.held, seen.reason) == (False, "the arm does not move")
    first: Any = rigs.rig(SHARED)
    assert StandInRig.made[2:] == [first]
    assert first.episodes == 1
