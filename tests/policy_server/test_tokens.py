"""What is a token: signed, for one trust domain, and as it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.access import tokens
from protos.access.door import read_token_key
from protos.access.errors import UnidentifiedError
from protos.access.roles import Role
from tools.authority import Authority


@pytest.mark.parametrize(
    "text", ["", "rt1", "rt1..", "rt1.e30.AAAA", "rt2.e30." + "A" * 86, "rt1." + "A" * 5000 + "." + "A" * 86]
)
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    authority, _ = Authority.ensure(tmp_path / "a")
    with pytest.raises(UnidentifiedError):
        tokens.verify(text, read_token_key(authority.folder / "tokens.pub"), "ratchet")


def test_a_token_is_for_one_trust_domain_and_cannot_be_changed(tmp_path: Path) -> None:
    authority, _ = Authority.ensure(tmp_path / "a")
    public = read_token_key(authority.folder / "tokens.pub")
    token = authority.token("anna", Role.LOOK)
    assert tokens.verify(token.text, public, "ratchet").caller == token.caller
    with pytest.raises(UnidentifiedError, match="is for ratchet, not for elsewhere"):
        tokens.verify(token.text, public, "elsewhere")
    head, body, signature = token.text.split(".")
    other = authority.token("anna", Role.DEPLOY).text.split(".")[1]
    with pytest.raises(UnidentifiedError, match="not signed"):
        tokens.verify(f"{head}.{other}.{signature}", public, "ratchet")
    assert body != other
