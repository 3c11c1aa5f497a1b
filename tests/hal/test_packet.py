"""Protocol 2.0 packets: published vectors, round trips, and what damaged input may do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.dynamixel.crc import crc16, crc16_bytes
from hal.dynamixel.packet import (
    MAX_PACKET,
    Found,
    Instruction,
    PacketParser,
    build,
    build_fast_status,
    build_status,
    find_packet,
)
from hal.errors import ProtocolError

VECTORS = Path(__file__).resolve().parents[3] / "shared/fixtures/dynamixel/emanual_vectors.json"
needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason=f"published packets are not at {VECTORS}")
CHAIN = ("fast_sync_read_status_part1(id3=166)", "fast_sync_read_status_part2(id7=2079)")


def vectors() -> dict[str, bytes]:
    return {name: bytes.fromhex(row["hex"]) for name, row in json.loads(VECTORS.read_text()).items()}


def u8(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@needs_vectors
def test_every_published_packet_has_the_crc_and_length_we_compute() -> None:
    packets = {name: raw for name, raw in vectors().items() if name not in CHAIN}
    assert len(packets) >= 19
    for name, raw in packets.items():
        assert find_packet(u8(raw), 0, len(raw)) == (Found.PACKET, 0, len(raw)), name


@needs_vectors
@pytest.mark.parametrize(
    ("name", "motor_id", "instruction", "params"),
    [
        ("ping_id1", 1, Instruction.PING, ""),
        ("ping_broadcast", 0xFE, Instruction.PING, ""),
        ("read_present_position_id1", 1, Instruction.READ, "84000400"),
        ("write_goal_512", 1, Instruction.WRITE, "740000020000"),
        ("reg_write_goal_vel_200", 1, Instruction.REG_WRITE, "6800c8000000"),
        ("action", 1, Instruction.ACTION, ""),
        ("reboot", 1, Instruction.REBOOT, ""),
        ("sync_read_pos_1_2", 0xFE, Instruction.SYNC_READ, "840004000102"),
        ("sync_write_goal_1_150_2_170", 0xFE, Instruction.SYNC_WRITE, "74000400019600000002aa000000"),
        ("bulk_read", 0xFE, Instruction.BULK_READ, "0190000200029200 0100"),
        ("fast_sync_read_3_7_4", 0xFE, Instruction.FAST_SYNC_READ, "84000400030704"),
    ],
)
def test_we_build_the_published_instruction(name: str, motor_id: int, instruction: int, params: str) -> None:
    assert build(motor_id, instruction, bytes.fromhex(params)) == vectors()[name]


@needs_vectors
def test_we_build_and_read_the_published_status_packets() -> None:
    published = vectors()
    assert build_status(1, 0, bytes.fromhex("060426")) == published["ping_id1_status(model1030,fw38)"]
    (packet,) = PacketParser().feed(published["read_status_166"])
    assert (packet.id, packet.error, packet.params) == (1, 0, bytes.fromhex("a6000000"))


@needs_vectors
def test_fast_status_chain_matches_the_published_one() -> None:
    published = vectors()
    parts = [(0, 3, bytes.fromhex("a6000000")), (0, 7, bytes.fromhex("1f080000"))]
    assert build_fast_status(parts, 24) == [published[CHAIN[0]], published[CHAIN[1]]]


def test_crc_can_be_continued() -> None:
    data = bytes(range(200))
    assert crc16_bytes(data[90:], crc16_bytes(data[:90])) == crc16_bytes(data)
    assert crc16(u8(data), 10, 20, 0) == crc16_bytes(data[10:20])


@pytest.mark.parametrize(
    ("params", "stuffed"),
    [("fffffd", "fffffdfd"), ("fffffffd", "fffffffdfd"), ("fffffdfd", "fffffdfdfd"), ("fffd", "fffd")],
)
def test_stuffing_follows_the_published_rule(params: str, stuffed: str) -> None:
    raw = build(1, Instruction.WRITE, bytes.fromhex(params))
    assert raw[8:-2] == bytes.fromhex(stuffed)
    assert int.from_bytes(raw[5:7], "little") == len(raw) - 7


likely_stuffed = st.lists(st.sampled_from([0xFF, 0xFD, 0x00, 0x55, 0x07]), max_size=60).map(bytes)
payload = st.one_of(st.binary(max_size=300), likely_stuffed)
instructions = st.sampled_from([i for i in Instruction if i is not Instruction.STATUS])


@given(st.lists(st.tuples(st.integers(0, 252), instructions, payload), max_size=5), st.data())
def test_any_packets_survive_any_cut_of_the_stream(rows: list, data: st.DataObject) -> None:
    stream = b"".join(build(i, ins, p) for i, ins, p in rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parser, seen = PacketParser(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += parser.feed(stream[start:stop])
    assert [(p.id, p.instruction, p.params) for p in seen] == [(i, int(ins), p) for i, ins, p in rows]
    assert parser.crc_errors == 0


@given(st.integers(0, 252), st.integers(0, 255), payload)
def test_status_packets_round_trip(motor_id: int, error: int, params: bytes) -> None:
    (packet,) = PacketParser().feed(build_status(motor_id, error, params))
    assert (packet.id, packet.error, packet.params) == (motor_id, error, params)
    assert packet.alert == bool(error & 0x80)


@given(st.binary(max_size=40).filter(lambda b: b"\xff\xff\xfd" not in b and not b.endswith(b"\xff")), payload)
def test_noise_before_a_packet_costs_only_the_noise(noise: bytes, params: bytes) -> None:
    (packet,) = PacketParser().feed(noise + build(5, Instruction.WRITE, params))
    assert packet.params == params


@given(payload, st.data())
def test_a_flipped_bit_never_passes_as_a_packet_of_other_content(params: bytes, data: st.DataObject) -> None:
    raw = bytearray(build(9, Instruction.WRITE, params))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << (bit % 8)
    assert [p for p in PacketParser().feed(bytes(raw)) if p.instruction == Instruction.WRITE] == []


@given(st.binary(max_size=5000))
def test_arbitrary_bytes_never_raise_nor_grow_the_buffer(data: bytes) -> None:
    parser = PacketParser()
    parser.feed(data)
    parser.feed(b"\xff\xff\xfd\x00\x01\xff\xff" + data)
    assert len(parser._buffer) <= 2 * MAX_PACKET


def test_a_damaged_packet_is_skipped_and_counted_and_the_next_one_found() -> None:
    damaged = bytearray(build_status(3, 0, b"abcd"))
    damaged[10] ^= 0x40
    parser = PacketParser()
    packets = parser.feed(bytes(damaged) + build_status(4, 0, b"efgh"))
    assert [p.id for p in packets] == [4]
    assert parser.crc_errors == 1
    assert parser.rejected == [3]


def test_an_announced_length_beyond_the_limit_is_rejected_at_once() -> None:
    parser = PacketParser()
    assert parser.feed(b"\xff\xff\xfd\x00\x01\xff\xff\x55" + build_status(2, 0)) != []
    assert parser.bad_lengths == 1


def test_too_long_a_packet_is_refused() -> None:
    with pytest.raises(ProtocolError, match="exceeds 1024"):
        build(1, Instruction.WRITE, bytes(2000))
