"""The peer of `ratchet bench server`: pickled observations through gRPC, as other policy servers take them.

``python -m tools.bench.server_peer SOCKET BUNDLE TRUST PRECISION THREADS``. A blocking gRPC server, one
method that takes bytes, `pickle` on both ends, the same bundle and session as ours. It stays in here: what it
unpickles is what the benchmark itself pickled, over a socket in a directory of its own.
"""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import grpc
import numpy as np

METHOD = "/peer.Policy/Infer"
_LIMITS = [("grpc.max_receive_message_length", 2**26), ("grpc.max_send_message_length", 2**26)]


class Client:
    """Asks such a server, blocking."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_LIMITS)
        grpc.channel_ready_future(self._channel).result(60)
        self._call = self._channel.unary_unary(METHOD, None, None)

    def infer(self, state: np.ndarray, images: dict[str, np.ndarray]) -> np.ndarray:
        """Actions for a batch of one."""
        observation = {"state": state, **{f"image.{name}": image for name, image in images.items()}}
        reply = self._call(pickle.dumps(observation))
        return cast(np.ndarray, pickle.loads(reply))  # noqa: S301 (our own child's)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def serve(socket: Path, bundle: Path, trust: Path, precision: Literal["fp32", "int8"], threads: int) -> None:
    """Answer until killed."""
    from policies.bundle import Bundle
    from policies.fastest import open_fastest
    from policies.keys import TrustStore

    session = open_fastest(Bundle.open(bundle, TrustStore.load(trust)), precision, threads)

    def infer(request: bytes, _: Any) -> bytes:
        observation = pickle.loads(request)  # noqa: S301 (the benchmark's own)
        state = observation.pop("state")
        images = {name.removeprefix("image."): image for name, image in observation.items()}
        return pickle.dumps(session.infer(state, images).actions)

    server = grpc.server(ThreadPoolExecutor(1), options=_LIMITS)
    service, method = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(infer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    where, what, keys, form, count = sys.argv[1:]
    serve(Path(where), Path(what), Path(keys), "int8" if form == "int8" else "fp32", int(count))
