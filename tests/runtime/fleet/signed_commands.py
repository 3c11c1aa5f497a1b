"""Signed commands of three keys with different roles, as the tests of judging and journal send them."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, sign
from runtime.fleet.journal import ReturnAddress
from runtime.fleet.topics import Topics

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
