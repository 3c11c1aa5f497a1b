"""What ails the bench's motors: supply, strain, and what a motor does about it."""

from __future__ import annotations

import pytest

from hal.bench.servo_model import ERROR_INPUT_VOLTAGE, ERROR_OVERLOAD, OVERLOAD_AFTER_S
from hal.bench.world import SERVO_DT_S, World, WorldConfig

SHOULDER, ELBOW = 1, 2  # an XL430 at 12 V and an XL330 at 5 V


@pytest.fixture
def world() -> World:
    world = World(WorldConfig(width=32, height=32))
    world.reset(0)
    return world


def run(world: World, seconds: float) -> None:
    for _ in range(round(seconds / SERVO_DT_S)):
        world.step()


def test_a_small_motor_without_voltage_gives_up(world: World) -> None:
    world.faults.supply_v[ELBOW] = 3.2
    run(world, 0.5)
    state = world.joints(0, 0)
    assert state.voltage[ELBOW] == pytest.approx(3.2, abs=0.11)
    assert state.hardware_error.tolist() == [0, 0, ERROR_INPUT_VOLTAGE, 0, 0, 0]
    assert abs(state.position[ELBOW] - world.home[ELBOW]) > 0.05, "it has let go"


def test_a_large_motor_without_voltage_reports_it_and_goes_on(world: World) -> None:
    """Its Shutdown register does not name the input voltage."""
    world.faults.supply_v[SHOULDER] = 5.5
    run(world, 0.5)
    state = world.joints(0, 0)
    assert state.hardware_error[SHOULDER] == ERROR_INPUT_VOLTAGE
    assert abs(state.position[SHOULDER] - world.home[SHOULDER]) < 0.1, "it holds, more weakly"
    assert state.effort[SHOULDER] != 0.0


def test_strain_ends_in_overload_and_is_forgotten_with_it(world: World) -> None:
    world.faults.strain[ELBOW] = 1.0
    run(world, OVERLOAD_AFTER_S - 0.05)
    assert not any(world.hardware_errors)
    run(world, 0.1)
    assert world.hardware_errors[ELBOW] == ERROR_OVERLOAD
    world.faults.clear()
    world.clear_errors()
    run(world, 0.5)
    assert not any(world.hardware_errors)
