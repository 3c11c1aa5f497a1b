"""`ratchet keys`: the key that signs bundles, and whom this machine trusts."""

from __future__ import annotations

import datetime
import getpass
import re
import socket
from pathlib import Path
from typing import Any

import click

from policies.errors import KeyStoreError
from policies.keys import KEY_FILE, TrustStore, ensure_key, read_public, write_public
from protos.access.roles import Role
from tools.authority import CERTIFICATE_DAYS, TOKEN_DAYS, Authority, write_whole
from tools.console import disk_errors, show_fields, show_json
from tools.errors import UsageError
from tools.options import PATH, json_flag, keys_option, trust_option
from tools.paths import keys_dir, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet keys init --host robot.local
  ratchet keys issue anna --role drive
  ratchet keys token ben --days 7
  ratchet keys show --json
  ratchet keys trust colleague.pub
"""


ROLE = click.Choice([role.name.lower() for role in Role])


@click.group(epilog=EXAMPLES)
def keys() -> None:
    """Who signs bundles, whose are trusted, and who may look at, drive or deploy to a robot."""


@keys.command(
    epilog="\b\nExamples:\n  ratchet keys init\n  ratchet keys init --host robot.local --host 192.168.1.20"
)
@keys_option
@click.option("--host", "hosts", multiple=True, help="Name or address clients use (repeatable).")
def init(keys: Path | None, hosts: tuple[str, ...]) -> None:
    """Make a signing key and this site's own authority, unless they are there; write certificates.

    Afterwards server/ holds what a robot or policy server needs to be reached over the network, and
    me/ a certificate of yours with role deploy.
    """
    folder = keys_dir(keys)
    existed = (folder / KEY_FILE).exists()
    with disk_errors(folder):
        pair = ensure_key(folder)
        authority, made = Authority.ensure(folder / "authority")
        if hosts or not (folder / "server" / "server.pem").exists():
            authority.server(folder / "server", _hosts(hosts))
        if not (folder / "me" / "client.pem").exists():
            authority.client(folder / "me", _own_name(), Role.DEPLOY)
    click.echo(f"key {pair.id} {'was there already' if existed else 'made'} in {folder}")
    click.echo(f"to let another machine run what you sign, copy {folder / f'{pair.id}.pub'} there")
    click.echo(
        f"authority {'made' if made else 'was there already'} in {authority.folder}; keep its keys here"
    )
    click.echo(f"servers: point [remote.tls] and `ratchet serve --tls` at {folder / 'server'}")
    click.echo(
        f"you, with role deploy: --tls {folder / 'me'}; others: `ratchet keys issue NAME --role drive`"
    )


@keys.command(epilog="\b\nExample:\n  ratchet keys issue anna --role drive --out anna")
@click.argument("name")
@click.option("--role", type=ROLE, default="look", show_default=True, help="look, drive or deploy.")
@click.option("--days", type=click.IntRange(1, 3650), default=CERTIFICATE_DAYS, show_default=True)
@click.option("--out", type=PATH, help="Folder to write [default: NAME].")
@keys_option
def issue(name: str, role: str, days: int, out: Path | None, keys: Path | None) -> None:
    """Issue a client certificate: a folder with client.pem, client.key and ca.pem for --tls."""
    folder = out or Path(name)
    with disk_errors(folder):
        _authority(keys).client(folder, name, Role[role.upper()], days)
    click.echo(f"{name} has role {role} for {days} days: {folder}")


@keys.command(epilog="\b\nExample:\n  ratchet keys token anna --role drive --days 7 --out anna")
@click.argument("name")
@click.option("--role", type=ROLE, default="look", show_default=True, help="look, drive or deploy.")
@click.option("--days", type=click.IntRange(1, 365), default=TOKEN_DAYS, show_default=True)
@click.option("--out", type=PATH, help="Folder to write [default: NAME].")
@keys_option
def token(name: str, role: str, days: int, out: Path | None, keys: Path | None) -> None:
    """Make a token for a person: a folder with token and ca.pem for --tls."""
    folder, authority = out or Path(name), _authority(keys)
    with disk_errors(folder):
        made = authority.token(name, Role[role.upper()], days)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder / "token", f"{made.text}\n".encode(), 0o600)
        write_whole(folder / "ca.pem", (authority.folder / "ca.pem").read_bytes(), 0o644)
    click.echo(f"{name} has role {role} for {days} days, token {made.id}: {folder}")


@keys.command(epilog="\b\nExample:\n  ratchet keys revoke anna")
@click.argument("name")
@keys_option
def revoke(name: str, keys: Path | None) -> None:
    """Take back everything issued to NAME, or one entry (cert:… or token:…) of `ratchet keys show`."""
    authority = _authority(keys)
    with disk_errors(authority.folder):
        added = authority.revoke(name)
    for one in added:
        click.echo(f"revoked {one.entry} ({one.kind} of {one.name}, role {one.role})")
    if not added:
        click.echo(f"everything issued to {name} was revoked already")
    click.echo(f"copy {authority.folder / 'revoked'} to where the servers read it (revoked = …)")


@keys.command(epilog="\b\nExample:\n  ratchet keys show")
@keys_option
@trust_option
@json_flag
def show(keys: Path | None, trust: Path | None, as_json: bool) -> None:
    """Show the signing key's id, whose bundles are accepted, and what the authority has issued."""
    folder, trusted = keys_dir(keys), trust_dir(trust, keys)
    if not (folder / KEY_FILE).exists():
        raise UsageError(f"no signing key in {folder}; make one with `ratchet keys init`")
    pair = ensure_key(folder)
    found: dict[str, Any] = {
        "key": pair.id,
        "directory": str(folder),
        "trust": str(trusted),
        "trusted": sorted(TrustStore.load(trusted).ids),
        "issued": _issued(folder),
    }
    if as_json:
        show_json(found)
        return
    issued = found.pop("issued")
    show_fields({**found, "trusted": ", ".join(found["trusted"])})
    for one in issued:
        click.echo(
            f"  {one['name']:20} {one['role']:7} {one['kind']:12} until {one['until']}  {one['entry']}"
            f"{'  REVOKED' if one['revoked'] else ''}"
        )


@keys.command(epilog="\b\nExample:\n  ratchet keys trust colleague.pub")
@click.argument("public", type=PATH)
@keys_option
@trust_option
def trust(public: Path, keys: Path | None, trust: Path | None) -> None:
    """Accept bundles signed by the key in the file PUBLIC."""
    folder = trust_dir(trust, keys)
    try:
        key = read_public(public)
    except IsADirectoryError:
        raise KeyStoreError(f"{public} is a directory; give the .pub file itself") from None
    with disk_errors(folder):
        path = write_public(key, folder)
    click.echo(f"bundles signed by {path.stem} are accepted from now on ({folder})")


def _authority(keys: Path | None) -> Authority:
    return Authority.open(keys_dir(keys) / "authority")


def _hosts(given: tuple[str, ...]) -> list[str]:
    """What a server's certificate is for: the names given, and always this machine itself."""
    own = [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    return list(dict.fromkeys([*given, *(name for name in own if name)]))


def _own_name() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        name = "me"
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64] or "me"


def _issued(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "authority" / "ca.pem").exists():
        return []
    authority = Authority.open(folder / "authority")
    revoked = authority.revoked
    return [
        {
            "name": one.name,
            "role": one.role,
            "kind": one.kind,
            "until": datetime.datetime.fromtimestamp(one.expires, datetime.UTC).date().isoformat(),
            "entry": one.entry,
            "revoked": one.entry in revoked,
        }
        for one in authority.issued
    ]
