"""The control tables agree with the published ones, register by register."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hal.dynamixel.errors import HardwareError, StatusError, decode_hardware_error, hardware_remedy
from hal.dynamixel.tables import BAUD_CODES, MODELS, MODELS_BY_NUMBER

TABLES = Path(__file__).resolve().parents[3] / "shared/fixtures/dynamixel/control_tables.json"
needs_tables = pytest.mark.skipif(not TABLES.exists(), reason=f"published control tables are not at {TABLES}")


@needs_tables
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_register_matches_the_published_table(name: str) -> None:
    published = json.loads(TABLES.read_text())["models"][name]["rows"]
    ours = [
        (
            r.address,
            r.size,
            r.name,
            "RW" if r.writable else "R",
            "EEPROM" if r.eeprom else "RAM",
            r.signed,
            r.initial,
        )
        for r in MODELS[name].registers
    ]
    theirs = [
        (r["addr"], r["size"], r["name"], r["access"], r["area"], r["signed"], r["initial"])
        for r in published
    ]
    assert ours == theirs


@needs_tables
def test_baud_codes_and_error_numbers_match_the_published_ones() -> None:
    published = json.loads(TABLES.read_text())
    assert {str(code): baud for code, baud in BAUD_CODES.items()} == published["baud_codes"]
    assert {str(int(e)) for e in StatusError if e} == set(published["status_error_numbers"]) - {"128"}
    bits = published["shutdown_and_hw_error_bits"]
    assert {str(bit) for bit in range(8) if any(f == 1 << bit for f in HardwareError)} == set(bits)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_initial_values_lie_in_their_own_ranges(name: str) -> None:
    for register in MODELS[name].registers:
        if register.writable and register.initial is not None:
            assert register.minimum <= register.initial <= register.maximum, register.name


def test_models_are_found_by_the_number_a_ping_returns() -> None:
    assert {n: m.name for n, m in MODELS_BY_NUMBER.items()} == {
        1200: "xl330-m288",
        1190: "xl330-m077",
        1060: "xl430-w250",
    }


def test_registers_encode_and_decode_signed_values() -> None:
    goal = MODELS["xl430-w250"]["Goal_Position"]
    assert goal.encode(-2) == b"\xfe\xff\xff\xff"
    assert goal.decode(b"\xfe\xff\xff\xff\x99") == -2
    with pytest.raises(OverflowError):
        MODELS["xl430-w250"]["Torque_Enable"].encode(256)


def test_hardware_errors_are_named_with_a_remedy() -> None:
    assert decode_hardware_error(0) == ()
    assert decode_hardware_error(0x24) == ("overheating", "overload")
    assert decode_hardware_error(0x80) == ("unknown bits 0x80",)
    assert "cool" in hardware_remedy(0x04)
    assert "power off and on" in hardware_remedy(0x20)
