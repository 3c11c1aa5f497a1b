"""What an arm's motors were told: the emulator, not the guard, is the judge of a command.

The judge sees every goal that reaches a motor whose torque is on, at the moment its last bit has
travelled, in the motor's own resolution (one tick, 0.0015 rad). It knows no limits. It measures:

``distance``      |goal − measured position at that moment|, rad;
``step``          |goal − the goal before it|, rad a servo period (1/240 s), of steps that raise the motor's
                  force: where a write was lost on the way, the next one's step is of two periods (three at
                  most);
``yielded``       the same of steps that give way: towards where the motor is and not past it (those of more
                  than ``YIELD_RAD``: not past it by more than that, as the arm moves on between a read and a
                  write). A large one, as after an e-stop, is no motion: spans begin anew after it;
``speed``         |change| / time over the newest span of at least ``WINDOW_NS`` between writes, rad/s. So
                  long a span makes little of the host's jitter: a write late by one 240 Hz period adds at
                  most 8 %;
``acceleration``  |change of speed| between two such spans, one after the other, over the mean of their
                  lengths, rad/s². A tick is 1.2 rad/s² here, a write late by a period three times the speed.

A motor that stops by itself (watchdog) or is energised has a new goal of its own; what is written next is
compared with that one, and spans begin anew. So they do after the emulator itself was kept from running:
what arrived meanwhile is seen all at once, and its times say nothing.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from hal.types import Vector

CAPACITY = 4096
"""Writes that are kept: 17 s at 240 Hz."""
WINDOW_NS = 50_000_000
YIELD_RAD = 0.02
_TORQUE_CAPACITY = 256
_TICK_RAD = 2 * np.pi / 4096
_PERIOD_NS = 1e9 / 240
_MOST_PERIODS = 3.0  # what comes after a longer silence is no late step but a new one

# rows of the figures
_LOW, _HIGH, _DISTANCE, _STEP, _YIELDED, _SPEED, _ACCELERATION = range(7)


class JudgeReport(BaseModel):
    """What the motors of one arm were told since ``reset_ns`` (monotonic ns).

    Tuples are per motor, in joint order. ``writes`` are packets that brought a goal to an energised motor,
    ``low`` and ``high`` rad are None for a motor that got none. The others are defined above.
    ``last_write_ns`` and ``last_change_ns`` are 0 before the first write, ``last_change_ns`` the last one
    that moved a goal. ``watchdog_stops`` counts motors that stopped by themselves as the bus was quiet,
    ``stalls`` how often the emulator was kept from running.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reset_ns: int
    writes: int
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    distance: tuple[float, ...]
    step: tuple[float, ...]
    yielded: tuple[float, ...]
    speed: tuple[float, ...]
    acceleration: tuple[float, ...]
    last_write_ns: int
    last_change_ns: int
    torque: tuple[bool, ...]
    watchdog_stops: int
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class GoalLog:
    """The last writes, oldest first: ``t_ns`` int64 (n,) monotonic, ``goal``, ``measured`` rad (n, motors).

    A goal is NaN while its motor has no torque. ``torque_t_ns`` int64 (k,), ``torque_motor`` (index) and
    ``torque_on`` are the last switches of torque.
    """

    t_ns: npt.NDArray[np.int64]
    goal: Vector
    measured: Vector
    torque_t_ns: npt.NDArray[np.int64]
    torque_motor: npt.NDArray[np.int64]
    torque_on: npt.NDArray[np.bool_]

    def to_wire(self) -> dict[str, Any]:
        """As JSON: shapes, and little-endian bytes in base64."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.__slots__}
        return {
            name: {"shape": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
            for name, array in arrays.items()
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> GoalLog:
        """The inverse of ``to_wire``."""
        kinds = {"goal": np.float64, "measured": np.float64, "torque_on": np.bool_}
        return cls(
            **{
                name: np.frombuffer(base64.b64decode(part["data"]), kinds.get(name, np.int64)).reshape(
                    part["shape"]
                )
                for name, part in wire.items()
            }
        )


class Judge:
    """Watches ``motors`` motors. One thread at a time.

    Motors report with ``goal``, ``energise``, ``release`` and ``stop`` while they carry an instruction out;
    ``commit`` closes the instruction.
    """

    def __init__(self, motors: int) -> None:
        self._t_ns = np.zeros(CAPACITY, np.int64)
        self._goals = np.full((CAPACITY, motors), np.nan)
        self._measured = np.full((CAPACITY, motors), np.nan)
        self._goal = np.full(motors, np.nan)
        self._before = np.full(motors, np.nan)
        self._written = np.zeros(motors, np.bool_)
        self._torque = np.zeros(motors, np.bool_)
        self._begun = np.zeros(motors, np.int64)
        self._figures = np.zeros((7, motors))
        self._marks = np.zeros(2, np.int64)  # rows one and two windows ago
        self._count = 0
        self._switches: list[tuple[int, int, bool]] = []
        self._fresh: list[tuple[int, bool]] = []
        self.reset(0)

    def reset(self, now_ns: int) -> None:
        """Forget what was measured and logged; goals and torque are as they are."""
        self._reset_ns = now_ns
        self._figures[:] = 0.0
        self._figures[_LOW], self._figures[_HIGH] = np.inf, -np.inf
        self._count = 0
        self._marks[:] = 0
        self._begun[:] = 0
        self._switches.clear()
        self._writes = self._watchdog_stops = self._stalls = 0
        self._last_write_ns = self._last_change_ns = 0

    def goal(self, index: int, position: float) -> None:
        """Motor ``index``, energised, was told to go to ``position`` rad."""
        self._goal[index] = position
        self._written[index] = True

    def energise(self, index: int, position: float) -> None:
        """Motor ``index`` took torque; its goal is ``position`` rad."""
        if not self._torque[index]:
            self._torque[index] = True
            self._own_goal(index, position)
            self._written[index] = True
            self._fresh.append((index, True))

    def release(self, index: int) -> None:
        """Motor ``index`` has no torque."""
        if self._torque[index]:
            self._torque[index] = False
            self._own_goal(index, np.nan)
            self._written[index] = False
            self._fresh.append((index, False))

    def stop(self, index: int, position: float) -> None:
        """Motor ``index`` was stopped by its watchdog and holds at ``position`` rad."""
        self._watchdog_stops += 1
        self._own_goal(index, position)

    def stalled(self) -> None:
        """The emulator did not run for a while."""
        self._stalls += 1
        self._begun[:] = self._count

    def _own_goal(self, index: int, position: float) -> None:
        self._goal[index] = self._before[index] = position
        self._begun[index] = self._count

    def commit(self, now_ns: int, measured: Vector) -> None:
        """An instruction has arrived whole at ``now_ns``, while the motors were at ``measured`` rad."""
        if self._fresh:
            self._switches += [(now_ns, index, on) for index, on in self._fresh]
            del self._switches[:-_TORQUE_CAPACITY]
            self._fresh.clear()
        if not self._written.any():
            return
        moved = _judge(
            now_ns,
            self._count,
            self._goal,
            self._before,
            measured,
            self._written,
            self._t_ns,
            self._goals,
            self._measured,
            self._begun,
            self._marks,
            self._figures,
        )
        self._count += 1
        self._writes += 1
        self._last_write_ns = now_ns
        if moved:
            self._last_change_ns = now_ns

    def report(self) -> JudgeReport:
        """What was measured since the reset."""
        figures = [tuple(float(value) for value in row) for row in self._figures]
        told = [low <= high for low, high in zip(figures[_LOW], figures[_HIGH], strict=True)]
        return JudgeReport(
            reset_ns=self._reset_ns,
            writes=self._writes,
            low=tuple(value if got else None for value, got in zip(figures[_LOW], told, strict=True)),
            high=tuple(value if got else None for value, got in zip(figures[_HIGH], told, strict=True)),
            distance=figures[_DISTANCE],
            step=figures[_STEP],
            yielded=figures[_YIELDED],
            speed=figures[_SPEED],
            acceleration=figures[_ACCELERATION],
            last_write_ns=self._last_write_ns,
            last_change_ns=self._last_change_ns,
            torque=tuple(bool(on) for on in self._torque),
            watchdog_stops=self._watchdog_stops,
            stalls=self._stalls,
        )

    def log(self) -> GoalLog:
        """The last writes and switches of torque since the reset; copies."""
        rows = np.arange(max(0, self._count - CAPACITY), self._count) % CAPACITY
        return GoalLog(
            t_ns=self._t_ns[rows],
            goal=self._goals[rows],
            measured=self._measured[rows],
            torque_t_ns=np.array([t for t, _, _ in self._switches], np.int64),
            torque_motor=np.array([motor for _, motor, _ in self._switches], np.int64),
            torque_on=np.array([on for _, _, on in self._switches], np.bool_),
        )


@numba.njit(cache=True)
def _judge(
    now_ns: int,
    count: int,
    goal: Vector,
    before: Vector,
    measured: Vector,
    written: npt.NDArray[np.bool_],
    ring_t: npt.NDArray[np.int64],
    ring_goal: Vector,
    ring_measured: Vector,
    begun: npt.NDArray[np.int64],
    marks: npt.NDArray[np.int64],
    figures: Vector,
) -> bool:
    """Log one write as row number ``count`` and raise ``figures`` (7, n); whether a goal moved.

    ``marks`` are the numbers of the newest rows at least one and two windows old, ``begun`` the first row of
    each motor's present course. Clears ``written``.
    """
    size = len(ring_t)
    row = count % size
    ring_t[row] = now_ns
    oldest = max(0, count - size + 1)
    marks[0] = _back(ring_t, max(marks[0], oldest), count, now_ns - WINDOW_NS)
    first = ring_t[marks[0] % size]
    marks[1] = _back(ring_t, max(marks[1], oldest), marks[0], first - WINDOW_NS)
    second = ring_t[marks[1] % size]
    periods = (now_ns - ring_t[(count - 1) % size]) / _PERIOD_NS if count > 0 else 1.0
    share = 1.0 / min(periods, _MOST_PERIODS) if periods > 1.5 else 1.0
    moved = False
    for i in range(len(goal)):
        ring_goal[row, i], ring_measured[row, i] = goal[i], measured[i]
        if not written[i]:
            continue
        written[i] = False
        step = goal[i] - before[i]
        figures[_LOW, i] = min(figures[_LOW, i], goal[i])
        figures[_HIGH, i] = max(figures[_HIGH, i], goal[i])
        figures[_DISTANCE, i] = max(figures[_DISTANCE, i], abs(goal[i] - measured[i]))
        moved |= abs(step) > 0.5 * _TICK_RAD
        if _gives_way(step, measured[i] - before[i]):
            figures[_YIELDED, i] = max(figures[_YIELDED, i], abs(step))
            if abs(step) > YIELD_RAD:
                begun[i] = count
        else:
            figures[_STEP, i] = max(figures[_STEP, i], share * abs(step))
        before[i] = goal[i]
        if marks[0] >= begun[i] and now_ns - first >= WINDOW_NS:
            speed = (goal[i] - ring_goal[marks[0] % size, i]) / ((now_ns - first) * 1e-9)
            figures[_SPEED, i] = max(figures[_SPEED, i], abs(speed))
            if marks[1] >= begun[i] and first - second >= WINDOW_NS:
                earlier = ring_goal[marks[0] % size, i] - ring_goal[marks[1] % size, i]
                change = speed - earlier / ((first - second) * 1e-9)
                figures[_ACCELERATION, i] = max(
                    figures[_ACCELERATION, i], abs(change) / (0.5e-9 * (now_ns - second))
                )
    return moved


@numba.njit(cache=True)
def _gives_way(step: float, towards: float) -> bool:
    """Whether a step goes to where the motor is, ``towards`` rad away, and not past it."""
    slack = YIELD_RAD if abs(step) > YIELD_RAD else _TICK_RAD
    return step * towards > 0.0 and abs(step) <= abs(towards) + slack


@numba.njit(cache=True)
def _back(ring_t: npt.NDArray[np.int64], mark: int, last: int, until_ns: int) -> int:
    """The newest row from ``mark`` to ``last`` that is not later than ``until_ns``; ``mark`` when none is."""
    size = len(ring_t)
    while mark < last and ring_t[(mark + 1) % size] <= until_ns:
        mark += 1
    return mark
