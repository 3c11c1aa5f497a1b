"""Commands are judged in a fixed order, by what was signed and not by what is claimed. No broker here."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from signed_commands import CONFIG, NOW_MS, TOPICS, command

from protos.access.roles import Role
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, decode, encode, signed_bytes
from runtime.fleet.operations import OPERATIONS
from runtime.fleet.receive import Checks, Refusal
from runtime.fleet.transport import backoff


@pytest.fixture
def checks() -> Checks:
    return Checks(CONFIG, TOPICS, lambda: NOW_MS)


def judge(
    checks: Checks,
    sent: Command | bytes,
    *,
    topic: str = "",
    retained: bool = False,
    mode: str = "ready",
    holder: str = "",
) -> str:
    """The code the rules refuse with, or an empty string."""
    payload = sent if isinstance(sent, bytes) else encode(sent)
    op = sent.op if isinstance(sent, Command) else "hold"
    try:
        accepted, operation = checks.authenticate(topic or TOPICS.command(op), payload, retained=retained)
        checks.admit(accepted, operation, mode, holder)  # type: ignore[arg-type]
    except Refusal as refusal:
        return refusal.code
    return ""


def test_a_good_command_passes(checks: Checks) -> None:
    assert judge(checks, command()) == ""
    assert judge(checks, command("start_episode", "driv", args={"task": "pick"})) == ""
    assert judge(checks, command("set_policy", args={"bundle": "/b"})) == ""


def tampered(**changes: Any) -> Command:
    return msgspec.structs.replace(command(), **changes)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"x" * 1025, "TOO_LARGE"),
        (b"", "MALFORMED"),
        (b"null", "MALFORMED"),
        (b"[" * 1000, "MALFORMED"),
        (b'"\xff"', "MALFORMED"),
        (encode({**msgspec.to_builtins(command()), "extra": 1}), "MALFORMED"),
        (encode({**msgspec.to_builtins(command()), "expires": "1junk"}), "MALFORMED"),
        (encode({**msgspec.to_builtins(command()), "expires": 1e12}), "MALFORMED"),
        (encode({**msgspec.to_builtins(command()), "args": {"reason": 1}}), "MALFORMED"),
        (encode({k: v for k, v in msgspec.to_builtins(command()).items() if k != "audience"}), "MALFORMED"),
        (command(audience="lab/other"), "AUDIENCE"),
        (command(audience="lab/+"), "MALFORMED"),
        (command(key="driv", signer="look"), "SIGNATURE"),
        (tampered(signature="0" * 128), "SIGNATURE"),
        (tampered(expires=NOW_MS + 20_000), "SIGNATURE"),
        (tampered(args={"reason": "other"}), "SIGNATURE"),
        (tampered(key="nobody"), "SIGNATURE"),
        (command("dance"), "UNKNOWN_OP"),
        (command("enable"), "UNKNOWN_OP"),
        (command("set_policy", "driv", args={"bundle": "/b"}), "ROLE"),
        (command("start_policy", "look"), "ROLE"),
        (command("start_episode"), "ARGUMENTS"),
        (command("hold", args={"position": "1"}), "ARGUMENTS"),
        (command(expires=NOW_MS), "EXPIRED"),
        (command(issued=NOW_MS - 9_000_000, expires=NOW_MS - 8_900_000), "EXPIRED"),
        (command(issued=NOW_MS + 5_001), "CLOCK"),
        (command(expires=NOW_MS + 300_001), "LIFETIME"),
    ],
)
def test_what_is_refused(checks: Checks, sent: Command | bytes, code: str) -> None:
    assert judge(checks, sent) == code


@pytest.mark.parametrize(
    ("op", "mode", "code"),
    [
        ("start_policy", "off", "MODE"),
        ("start_policy", "estop", "MODE"),
        ("start_policy", "policy", "MODE"),
        ("start_policy", "hold", ""),
        ("stop", "estop", ""),
        ("estop", "off", ""),
        ("hold", "fault", ""),
        ("ping", "fault", ""),
    ],
)
def test_modes(checks: Checks, op: str, mode: str, code: str) -> None:
    assert judge(checks, command(op), mode=mode) == code


def test_nobody_is_driven_over_while_holding_control(checks: Checks) -> None:
    assert judge(checks, command("start_policy"), holder="anna") == "LEASE"
    assert judge(checks, command("estop"), holder="anna") == ""


def test_the_order_of_the_checks(checks: Checks) -> None:
    """A message with every fault at once is refused for the first; mending one shows the next."""
    wrong = command("start_policy", "look", audience="lab/other", issued=1, expires=2)
    topic = TOPICS.command("start_policy")
    assert judge(checks, b"{" * 2000, topic=topic, retained=True, mode="off") == "RETAINED"
    assert judge(checks, b"{" * 2000, topic=topic, mode="off") == "TOO_LARGE"
    assert judge(checks, b"{", topic=topic, mode="off") == "MALFORMED"
    unsigned = msgspec.structs.replace(wrong, signature="0" * 128)
    assert judge(checks, unsigned, topic=topic, mode="off") == "AUDIENCE"
    unsigned = msgspec.structs.replace(unsigned, audience="lab/koch")
    assert judge(checks, unsigned, topic=topic, mode="off") == "SIGNATURE"
    late = command("start_policy", "driv", issued=1, expires=2)
    assert judge(checks, late, mode="off") == "EXPIRED"
    assert judge(checks, command("start_policy", "driv"), mode="off") == "MODE"


def test_the_topic_must_name_the_operation(checks: Checks) -> None:
    assert judge(checks, command("start_policy"), topic=TOPICS.command("ping")) == "AUDIENCE"


def test_nothing_energises_the_arm_or_carries_joint_targets() -> None:
    moving = {"start_policy", "set_policy", "start_episode", "end_episode"}
    assert set(OPERATIONS) == {"ping", "status", "stop", "estop", "hold"} | moving
    assert {name for name, operation in OPERATIONS.items() if operation.safe} == {"stop", "estop", "hold"}
    assert OPERATIONS["set_policy"].role is Role.DEPLOY


def test_signed_bytes_can_be_made_by_any_json_library() -> None:
    made = command("start_episode", args={"task": 'Würfel "A"/B\\'})
    fields = msgspec.to_builtins(made)
    del fields["signature"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert signed_bytes(made) == b"ratchet.command.1\n" + text.encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(max_size=8) | st.integers(),
       lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4)).map(encode))  # fmt: skip
def test_no_bytes_get_past_or_break_the_checks(payload: bytes) -> None:
    assert judge(Checks(CONFIG, TOPICS, lambda: NOW_MS), payload) in ("MALFORMED", "TOO_LARGE")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_of_a_signed_command_is_authentic(data: st.DataObject) -> None:
    original = command("start_episode", args={"task": "pick"})
    payload = bytearray(encode(original))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    try:
        same = decode(bytes(payload)) == original
    except (msgspec.MsgspecError, UnicodeDecodeError):
        same = False
    assert same or judge(Checks(CONFIG, TOPICS, lambda: NOW_MS), bytes(payload)) != ""


def test_replies_go_to_this_robots_reply_topics_only() -> None:
    assert TOPICS.is_response("ratchet/v1/lab/koch/resp/tool-1")
    for topic in ("ratchet/v1/lab/koch/status", "ratchet/v1/lab/koch/resp/", "ratchet/v1/lab/koch/resp/a/b",
                  "ratchet/v1/lab/other/resp/a", "ratchet/v1/lab/koch/resp/#"):  # fmt: skip
        assert not TOPICS.is_response(topic)


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "broker.example.org", "plaintext": True},
        {"plaintext": False},
        {"plaintext": True, "unknown": 1},
        {"plaintext": True, "remember_s": 60.0, "max_lifetime_s": 60.0},
        {"plaintext": True, "backoff_min_s": 2.0, "backoff_max_s": 1.0},
        {"plaintext": True, "keys": {"a": {"public": "00"}}},
    ],
)
def test_wrong_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FleetConfig(**wrong)


def test_backoff_is_jittered_and_bounded() -> None:
    waits = [list(islice(backoff(0.5, 30.0, random.Random(seed)), 12)) for seed in range(50)]
    for attempt in range(12):
        ceiling = min(30.0, 0.5 * 2**attempt)
        values = [one[attempt] for one in waits]
        assert 0.0 <= min(values) < 0.3 * ceiling
        assert 0.7 * ceiling < max(values) <= ceiling
