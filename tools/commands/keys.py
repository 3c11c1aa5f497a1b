"""`ratchet keys`: the key that signs bundles, and whom this machine trusts."""

from __future__ import annotations

from pathlib import Path

import click

from policies.errors import KeyStoreError
from policies.keys import KEY_FILE, TrustStore, ensure_key, read_public, write_public
from tools.console import disk_errors, show_fields, show_json
from tools.errors import UsageError
from tools.options import PATH, json_flag, keys_option, trust_option
from tools.paths import keys_dir, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet keys init
  ratchet keys show --json
  ratchet keys trust colleague.pub
"""


@click.group(epilog=EXAMPLES)
def keys() -> None:
    """Make and show the key that signs bundles; trust other people's."""


@keys.command(epilog="\b\nExample:\n  ratchet keys init")
@keys_option
def init(keys: Path | None) -> None:
    """Make a signing key, unless there is one."""
    folder = keys_dir(keys)
    existed = (folder / KEY_FILE).exists()
    with disk_errors(folder):
        pair = ensure_key(folder)
    click.echo(f"key {pair.id} {'was there already' if existed else 'made'} in {folder}")
    click.echo(f"to let another machine run what you sign, copy {folder / f'{pair.id}.pub'} there")


@keys.command(epilog="\b\nExample:\n  ratchet keys show")
@keys_option
@trust_option
@json_flag
def show(keys: Path | None, trust: Path | None, as_json: bool) -> None:
    """Show the signing key's id and whose bundles are accepted."""
    folder, trusted = keys_dir(keys), trust_dir(trust, keys)
    if not (folder / KEY_FILE).exists():
        raise UsageError(f"no signing key in {folder}; make one with `ratchet keys init`")
    pair = ensure_key(folder)
    found = {
        "key": pair.id,
        "directory": str(folder),
        "trust": str(trusted),
        "trusted": sorted(TrustStore.load(trusted).ids),
    }
    if as_json:
        show_json(found)
    else:
        show_fields({**found, "trusted": ", ".join(found["trusted"])})


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
