"""`ratchet`, with a thread that makes the collector walk everything when it is asked to.

    python -m tools.faults.collecting up --config DIR/ratchet.toml

The service of the product, unmodified, in a process that also listens at ``DIR/collect.sock``. Whoever
connects there causes one full collection, of what the service has frozen too, and is told how many
milliseconds it took. Ballast makes it a long one: the interpreter is held all that time.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import threading
import time
from pathlib import Path

from tools.cli import main

_BALLAST = 2_000_000


def address(config: Path) -> str:
    """Where the service with this configuration is asked to collect."""
    return str(config.parent / "collect.sock")


def collect(config: Path) -> float:
    """Cause a collection; how long it took, ms."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30.0)
        client.connect(address(config))
        took_ms: float = json.loads(client.makefile().readline())
        return took_ms


def _listen(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        while True:
            client, _ = server.accept()
            with client:
                begun = time.monotonic()
                gc.unfreeze()
                gc.collect()
                gc.freeze()
                client.sendall(json.dumps((time.monotonic() - begun) * 1e3).encode() + b"\n")


if __name__ == "__main__":
    gc.disable()
    ballast: list[list[int]] = [[] for _ in range(_BALLAST)]
    gc.enable()
    where = address(Path(sys.argv[sys.argv.index("--config") + 1]))
    threading.Thread(target=_listen, args=(where,), daemon=True).start()
    main()
