"""Commands are judged in a fixed order, and the journal keeps each id to one effect. No broker here."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from protos.access.roles import Role
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, Reply, decode, encode, sign, signed_bytes
from runtime.fleet.journal import Journal, JournalError, ReturnAddress
from runtime.fleet.operations import OPERATIONS
from runtime.fleet.receive import Checks, Refusal
from runtime.fleet.topics import Topics
from runtime.fleet.transport import backoff

KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 8) for name in ("look", "driv", "depl")}
ROLES = {"look": "look", "driv": "drive", "depl": "deploy"}
CONFIG = FleetConfig(
    plaintext=True,
    port=1883,
    max_command_bytes=1024,
    keys={
        name: {"public": key.public_key().public_bytes_raw().hex(), "role": ROLES[name]}
        for name, key in KEYS.items()
    },
)
TOPICS = Topics("lab", "koch")
NOW_MS = 1_800_000_000_000
ADDRESS = ReturnAddress(TOPICS.response("tool"), b"c")


def command(op: str = "hold", key: str = "depl", signer: str | None = None, **changes: Any) -> Command:
    fields: dict[str, Any] = {
        "id": "0123456789abcdef",
        "op": op,
        "args": {},
        "issued": NOW_MS - 100,
        "expires": NOW_MS + 10_000,
        "audience": "lab/koch",
        "key": key,
        "signature": "0" * 128,
    }
    unsigned = Command(**(fields | changes))
    return sign(unsigned, KEYS[signer or key].sign)


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


# --- the journal -------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "fleet.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, outbox_rows=100)
    yield journal
    journal.close()


def accepted(sent: Command) -> Reply:
    return Reply(sent.id, sent.op, "ACCEPTED", 1, NOW_MS)


def test_sessions_only_rise_over_restarts(path: Path) -> None:
    for expected in (1, 2, 3):
        journal = Journal(path)
        assert journal.next_session() == expected
        journal.close()


def test_a_duplicate_gets_the_stored_answer(journal: Journal) -> None:
    sent = command()
    assert journal.accept(sent, accepted(sent), ADDRESS, NOW_MS) == (True, accepted(sent))
    journal.advance(sent.id, "RUNNING", NOW_MS)
    done = journal.advance(sent.id, "SUCCEEDED", NOW_MS + 1, result={"x": 1})
    assert done.version == 3
    assert journal.accept(sent, accepted(sent), ADDRESS, NOW_MS + 2) == (False, done)
    states = [msgspec.json.decode(letter.payload, type=Reply).state for letter in journal.letters()]
    assert states == ["ACCEPTED", "SUCCEEDED", "SUCCEEDED"]


def test_an_id_used_for_something_else_is_refused_and_leaves_the_first_alone(journal: Journal) -> None:
    first, second = command("hold"), command("estop")
    journal.accept(first, accepted(first), ADDRESS, NOW_MS)
    fresh, answer = journal.accept(second, accepted(second), ADDRESS, NOW_MS)
    assert (fresh, answer.state, answer.code) == (False, "REJECTED", "ID_REUSED")
    assert journal.accept(first, accepted(first), ADDRESS, NOW_MS) == (False, accepted(first))


def test_what_was_unfinished_is_interrupted_and_reported(path: Path) -> None:
    journal = Journal(path)
    ids = [f"{name:x<16}" for name in ("waiting", "running", "finished")]
    for one in ids:
        sent = command(id=one)
        journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    journal.advance(ids[1], "RUNNING", NOW_MS)
    journal.advance(ids[2], "RUNNING", NOW_MS)
    journal.advance(ids[2], "SUCCEEDED", NOW_MS)
    journal.close()
    again = Journal(path)
    assert {reply.id: reply.state for reply in again.interrupt_unfinished(NOW_MS)} == {
        ids[0]: "INTERRUPTED",
        ids[1]: "INTERRUPTED",
    }
    assert again.interrupt_unfinished(NOW_MS) == []
    last = [msgspec.json.decode(letter.payload, type=Reply) for letter in again.letters()][-2:]
    assert [reply.state for reply in last] == ["INTERRUPTED", "INTERRUPTED"]
    again.close()


def test_events_are_bounded_replies_are_not(journal: Journal) -> None:
    sent = command()
    journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    for number in range(150):
        journal.post_event(TOPICS.event, str(number).encode())
    letters = journal.letters(1000)
    assert letters[0].topic == ADDRESS.topic
    assert [letter.payload for letter in letters[1:]] == [str(n).encode() for n in range(50, 150)]


def test_old_commands_are_forgotten_unfinished_ones_are_not(journal: Journal, path: Path) -> None:
    for one in ("finished", "hanging"):
        sent = command(id=f"{one:x<16}")
        journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    journal.advance("finishedxxxxxxxx", "SUCCEEDED", NOW_MS)
    sent = command()
    journal.accept(sent, accepted(sent), ADDRESS, NOW_MS + 86_400_001)
    with sqlite3.connect(path) as reader:
        assert {row[0] for row in reader.execute("SELECT id FROM commands")} == {"hangingxxxxxxxxx", sent.id}


def test_writes_are_on_disk_when_they_return(journal: Journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_full_disk_is_one_line_and_heals(journal: Journal) -> None:
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalError, match="is the disk full"):
        for number in range(1000):
            journal.post_event(TOPICS.event, b"x" * 4096 + str(number).encode())
    journal._db.execute("PRAGMA max_page_count=100000")
    journal.post_event(TOPICS.event, b"after")
    assert journal.letters(1000)[-1].payload == b"after"


def test_a_file_that_is_no_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(JournalError, match="cannot open"):
        Journal(tmp_path / "fleet.db")


# --- configuration and backoff -----------------------------------------------------------------


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
