"""`ratchet episodes sync` over a real ssh, to an sshd of this user's own on loopback."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from episode_helpers import record_episode

from episodes.errors import RecordingError
from episodes.store import EpisodeStore
from tools.commands.episodes import episodes
from tools.ports import free_port

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin") or shutil.which("sshd")

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no sshd here (apt-get install openssh-server)"
)


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Path]:
    """A program that is ssh with this server's keys; the server ends with the test."""
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/authorized\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )
    host = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host}")
    (folder / "ssh_config").write_text(
        f"Host desk\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n BatchMode yes\n LogLevel ERROR\n"
    )
    program = folder / "program"
    program.write_text(f'#!/bin/sh\nexec ssh -F {folder}/ssh_config "$@"\n')
    program.chmod(0o755)
    if getpass.getuser() == "root":  # where it separates privileges; a package's service makes it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    assert SSHD is not None
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        deadline = time.monotonic() + 30
        while b"listening" not in (folder / "log").read_bytes().lower():
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield program
    finally:
        server.terminate()
        server.wait(30)


def test_a_copy_over_a_real_ssh(store: EpisodeStore, tmp_path: Path, ssh: Path) -> None:
    name = record_episode(store, 30)
    ratchet = tmp_path / "our ratchet"
    ratchet.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tools.cli "$@"\n')
    ratchet.chmod(0o755)
    target = tmp_path / "it's; a place"
    destination = f"{getpass.getuser()}@desk:{target}"
    command = ["sync", destination, "--store", str(store.root), "--ssh", str(ssh)]
    done = CliRunner().invoke(episodes, [*command, "--remote-ratchet", str(ratchet)])
    assert done.exit_code == 0, done.exception
    assert "1 episodes copied" in done.output
    with EpisodeStore.open(target) as other:
        assert other.ids() == [name]
        assert other.verify().ok
    assert store.query("SELECT synced FROM episodes") == [{"synced": destination}]
    absent = CliRunner().invoke(episodes, [*command, "--remote-ratchet", "no-such-program"])
    assert isinstance(absent.exception, RecordingError)
    assert "no-such-program" in str(absent.exception), "what the shell there said"
