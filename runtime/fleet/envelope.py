"""The command envelope, its signature, and the reply.

MQTT does not tell a subscriber who published, so every command is signed by its sender. What is
signed is ``SIGNING_DOMAIN`` followed by the envelope as JSON without ``signature``: keys sorted, no
white space, UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, get_args

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNING_DOMAIN = b"ratchet.command.1\n"

Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z-]{16,64}$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_./-]{1,129}$")]
Millis = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
ArgKey = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
ArgText = Annotated[str, msgspec.Meta(max_length=1024)]
Args = Annotated[dict[ArgKey, ArgText], msgspec.Meta(max_length=8)]

CommandState = Literal[
    "ACCEPTED", "RUNNING", "SUCCEEDED", "FAILED", "REJECTED", "EXPIRED", "TIMED_OUT", "INTERRUPTED"
]
FINAL_STATES = frozenset(get_args(CommandState)) - {"ACCEPTED", "RUNNING"}


class Command(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One command. ``issued`` and ``expires`` are Unix milliseconds; ``audience`` is ``site/robot``;
    ``key`` names the signing key; ``signature`` is 128 hex digits."""

    id: Id
    op: Name
    args: Args
    issued: Millis
    expires: Millis
    audience: Name
    key: Name
    signature: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}$")]


class Reply(msgspec.Struct, frozen=True):
    """State of a command. ``version`` rises with each state of one id; ``code`` names a refusal;
    ``result`` holds what the operation returned; ``ts`` is the robot's Unix milliseconds."""

    id: str
    op: str
    state: CommandState
    version: int
    ts: int
    code: str = ""
    detail: str = ""
    result: dict[str, object] = {}

    @property
    def final(self) -> bool:
        """True when no further state will follow."""
        return self.state in FINAL_STATES


_decoder = msgspec.json.Decoder(Command)
_reply_decoder = msgspec.json.Decoder(Reply)


def decode(payload: bytes) -> Command:
    """A strictly decoded command. Raises ValueError (msgspec's) saying which field is wrong."""
    return _decoder.decode(payload)


def decode_reply(payload: bytes) -> Reply:
    """A reply. Raises ValueError."""
    return _reply_decoder.decode(payload)


def encode(message: msgspec.Struct | Mapping[str, object]) -> bytes:
    """JSON bytes, as they go over the wire."""
    return msgspec.json.encode(message)


def signed_bytes(command: Command) -> bytes:
    """What the signature of ``command`` covers."""
    fields = msgspec.to_builtins(command)
    del fields["signature"]
    return SIGNING_DOMAIN + msgspec.json.encode(fields, order="sorted")


def sign(command: Command, signer: Callable[[bytes], bytes]) -> Command:
    """``command`` with its signature by ``signer`` (ed25519: bytes → 64 bytes)."""
    return msgspec.structs.replace(command, signature=signer(signed_bytes(command)).hex())


def verify(command: Command, public_key: Ed25519PublicKey) -> bool:
    """True when ``public_key`` made the command's signature."""
    try:
        public_key.verify(bytes.fromhex(command.signature), signed_bytes(command))
    except InvalidSignature:
        return False
    return True
