"""Energising an arm that moves meanwhile: no motor is told to go back to where the arm was before."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest

from hal.types import JointState, Vector
from runtime.bus_link import ArmLink, ArmPort
from runtime.servo import HoldCause, ServoCore

SINKS_RAD = 0.01
"""In the time of one exchange with the bus."""


class SinkingArm:
    """A stand-in for an arm on its bus. What has no torque sinks with every exchange; what has holds."""

    def __init__(self, torque: bool) -> None:
        self.position = np.full(6, 0.2)
        self.goal = self.position.copy()
        self.on = np.full(6, torque)
        self.written: list[Vector] = []

    def _exchange(self) -> None:
        self.position = np.where(self.on, self.position, self.position - SINKS_RAD)

    def read(self) -> JointState:
        self._exchange()
        zeros, now = np.zeros(6), time.monotonic_ns()
        return JointState(
            seq=1, t_ns=now, position=self.position.copy(), velocity=zeros, effort=zeros,
            temperature=zeros + 30, voltage=zeros + 12, hardware_error=np.zeros(6, np.uint8),
            moving=np.zeros(6, np.bool_), age_ns=np.zeros(6, np.int64),
        )  # fmt: skip

    def torque(self) -> Any:
        self._exchange()
        return self.on.copy()

    def set_torque(self, on: bool) -> None:
        for motor in range(6):
            self._exchange()
            if not self.on[motor]:
                self.goal[motor] = self.position[motor]
            self.on[motor] = on

    def write_goals(self, position_rad: Vector) -> None:
        self.written.append(position_rad - self.goal)
        self.goal = position_rad.copy()

    def exchange(self, *_: object) -> tuple[str, ...]:
        self._exchange()
        return ()

    open = close = arm_watchdog = disarm_watchdog = clear_watchdog = watchdog_tripped = reconnect = exchange
    counters = np.zeros((1, 1), np.int64)


def linked(arm: SinkingArm) -> ArmLink:
    link = ArmLink(cast(ArmPort, arm), watchdog_ms=100, reconnect_s=1.0, shutdown_errors=0xFF)
    assert link.read() is not None
    return link


def test_a_limp_arm_is_not_lifted_to_where_it_was_when_it_was_asked_for() -> None:
    arm, core = SinkingArm(torque=False), ServoCore()
    linked(arm).energise(core)
    assert arm.on.all()
    assert arm.written[0] == pytest.approx(0.0, abs=1e-9)
    assert core.cause is HoldCause.STARTED
    assert core.goal == pytest.approx(arm.position)


def test_a_motor_that_came_back_is_not_lifted_to_where_the_others_were_held() -> None:
    """One motor was power-cycled: the arm was taken over where it stood, and it sank on."""
    arm, core = SinkingArm(torque=True), ServoCore()
    arm.on[2] = False
    link = linked(arm)
    link.settle(core, 0)
    held = core.goal
    for _ in range(20):
        link.read()
    arm.written.clear()
    link.energise(core)
    assert arm.written[0][2] == pytest.approx(0.0, abs=1e-9)
    assert core.goal[2] < held[2] - 20 * SINKS_RAD
    assert np.delete(core.goal, 2) == pytest.approx(np.delete(held, 2))


def test_an_arm_that_carries_torque_keeps_its_goals() -> None:
    arm, core = SinkingArm(torque=True), ServoCore()
    link = linked(arm)
    link.settle(core, 0)
    held = core.goal
    arm.position = arm.position - 0.05  # what it carries pulls it down
    link.read()
    link.energise(core)
    assert core.goal == pytest.approx(held)
