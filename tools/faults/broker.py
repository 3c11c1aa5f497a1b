"""A real mosquitto on a free loopback port, with its own configuration and persistence."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from pathlib import Path

from protos.access.tls import TlsFiles
from tools.errors import UsageError
from tools.ports import free_port, listens

_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


def find_mosquitto() -> str | None:
    """Path of the broker's program, if it is installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)


class Broker:
    """mosquitto in ``directory``; ``stop`` and ``start`` again keep port and persistent sessions.

    With ``tls`` it wants a client certificate signed by ``tls.ca``. Raises UsageError when it is not
    installed or does not start.
    """

    def __init__(self, directory: Path, tls: TlsFiles | None = None) -> None:
        binary = find_mosquitto()
        if binary is None:
            raise UsageError("no mosquitto binary here; apt-get install mosquitto")
        self._binary = binary
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._config = directory / "mosquitto.conf"
        self._config.write_text(
            f"user {getpass.getuser()}\n"
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {directory}/\n"
            "log_dest stderr\nlog_type error\nlog_type warning\n"
            + (
                f"cafile {tls.ca}\ncertfile {tls.certificate}\nkeyfile {tls.key}\nrequire_certificate true\n"
                if tls is not None
                else ""
            )
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        log = (self._directory / "broker.log").open("ab")
        with log:
            self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stderr=log)
        deadline_s = time.monotonic() + 10.0
        while time.monotonic() < deadline_s:
            if listens(self.port):
                return
            time.sleep(0.02)
        raise UsageError(f"mosquitto did not start; read {self._directory / 'broker.log'}")

    def stop(self) -> None:
        """Stop it in order, so that it saves what it must keep; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(timeout=10)

    def kill(self) -> None:
        """End it as a power cut would: no goodbye to anybody, nothing saved."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=10)
