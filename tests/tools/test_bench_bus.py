"""`ratchet bench bus` against the bench's emulator, and against motors that somebody else has set up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import ArmSpec, MotorSpec
from tools.bench.bus import command
from tools.errors import UsageError

PAIR = ArmSpec(
    name="pair",
    motors=(
        MotorSpec(joint="pan", id=11, model_name="xl430-w250"),
        MotorSpec(joint="tilt", id=7, model_name="xl330-m288"),
    ),
)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ServoEmulator]:
    config = EmulatorConfig(baud=57_600, wire_time=False, link=tmp_path / "tty")
    with ServoEmulator(PAIR, FirstOrderBackend(2), config) as emulator:
        yield emulator


def bench(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures: dict[str, object] = json.loads(result.stdout)
    return figures


def written(emulator: ServoEmulator) -> list[dict[str, int]]:
    """What somebody may have set, motor by motor."""
    return [
        {register.name: motor.peek(register.name) for register in motor.model.registers if register.writable}
        for motor in emulator.motors
    ]


@pytest.mark.slow
def test_the_bench_is_timed_beside_the_sdk() -> None:
    figures = bench("--cycles", "40", "--baud", "1000000", "--drop", "0.05")
    assert figures["motors"] == 6
    assert figures["wire_ms"] == pytest.approx(2.06)  # 40 + 122 + 44 bytes of ten bits
    assert figures["cycle_ms_p50"] >= figures["wire_ms"] * 0.99
    assert figures["cpu_ms_per_cycle"] < figures["sdk_cpu_ms_per_cycle"]
    assert figures["recovered"] > 0, "a twentieth of the replies was dropped"
    assert figures["lost_reply_costs_ms"] < figures["sdk_lost_reply_costs_ms"]


@pytest.mark.parametrize("torque", [False, True], ids=["indirect", "direct"])
def test_motors_on_a_port_are_found_and_only_read(pair: ServoEmulator, torque: bool) -> None:
    """Energised motors take no indirect addresses: their registers are read as they lie."""
    for motor in pair.motors:
        motor.poke("Torque_Enable", int(torque))
        motor.poke("Return_Delay_Time", 25)
    before = written(pair)
    figures = bench("--port", pair.port, "--baud", "57600", "--cycles", "20")
    assert (figures["ids"], figures["motors"]) == ([7, 11], 2)
    assert figures["models"] == ["xl330-m288", "xl430-w250"]
    assert figures["lost"] == 0
    assert written(pair) == before


def test_a_silent_port_is_one_line(pair: ServoEmulator) -> None:
    with pytest.raises(UsageError, match="no motor answers"):
        CliRunner().invoke(
            command, ["--port", pair.port, "--baud", "1000000"], catch_exceptions=False, standalone_mode=False
        )
