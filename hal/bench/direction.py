"""Who sets the scene and who moves the leader: resets and demonstrations of a running bench."""

from __future__ import annotations

import dataclasses
from typing import cast, get_args

from hal.bench.backends import FollowerBackend, LeaderBackend
from hal.bench.control import Arguments, BenchTask
from hal.bench.demonstrator import Demonstrator
from hal.bench.world import Region, World
from hal.errors import BenchError


class Direction:
    """Resets and demonstrates on one world; called only from the bench's loop."""

    def __init__(self, world: World, follower: FollowerBackend, leader: LeaderBackend) -> None:
        self._world, self._follower, self._leader = world, follower, leader
        self._demonstrator: Demonstrator | None = None

    def reset(self, seed: int, region: str = "full") -> None:
        """A new scene. The arms go home only while the follower is released: nobody moves it otherwise."""
        where = cast(Region, region)
        if where not in get_args(Region):
            raise BenchError(f"unknown region {region!r}", f"use one of {', '.join(get_args(Region))}")
        self._demonstrator = None
        self._leader.let_go()
        if self._follower.energised:
            self._world.reset_cube(seed, where)
            return
        self._world.reset(seed, where)
        self._follower.hold()
        self._leader.place(self._world.position)

    def demonstrate(self, seed: int) -> None:
        """Begin to move the leader, from the present state of arm and cube."""
        self._demonstrator = Demonstrator(self._world, seed)
        self._demonstrator.begin()

    def stop_demonstration(self) -> None:
        """The hand leaves the leader where it is."""
        self._demonstrator = None
        self._leader.let_go()

    def guide(self, steps: int) -> None:
        """Once per control tick of ``steps`` servo steps: the demonstrator's next move, if one is at work."""
        if self._demonstrator is None:
            return
        self._leader.guide(self._demonstrator.step(), steps)
        if self._demonstrator.done:
            self._demonstrator = None

    def task(self) -> Arguments:
        """A ``BenchTask`` as JSON."""
        state = dataclasses.asdict(self._world.task())
        return BenchTask(**state, demonstrating=self._demonstrator is not None).model_dump()
