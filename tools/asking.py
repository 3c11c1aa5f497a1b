"""One recorded observation to a policy server, and its answer: the whole wire, without a robot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.loading import load_dataset
from policies.manifest import Manifest
from protos.access.tls import Identity, open_sync_channel
from protos.codec import CodecError, decode_tensor, encode_image, encode_tensor
from protos.ratchet.v1 import policy_pb2, policy_pb2_grpc
from tools.errors import UsageError
from tools.finding import full_id
from tools.offline import data_config

_DEADLINE_S = 10.0


def ask_server(
    address: str, store: Path, episode: str, step: int, identity: Identity | None = None
) -> dict[str, Any]:
    """What the server's policy does at ``step`` of an episode, beside what was recorded there.

    Raises UsageError when the server does not answer, or the episode does not fit its policy.
    """
    with open_sync_channel(address, identity) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        manifest = _manifest(stub, address)
        with EpisodeStore.open(store, create=False, mode="r") as opened:
            name = full_id(opened, episode)
            config: DataConfig = data_config(manifest)
            data = load_dataset(opened, [name], config)
        if step >= len(data):
            raise UsageError(f"episode {name} has {len(data)} steps; --step is one of them, from 0")
        request = policy_pb2.InferRequest(
            request_id=1,
            session="ratchet model ask",
            tick=step,
            state=encode_tensor(data.state[step].numpy()),
            images=[encode_image(c.name, data.picture(c.name, [step])[0].numpy()) for c in manifest.cameras],
        )
        begin = time.perf_counter()
        answer = _call(stub.Infer, request, address)
        round_trip_ms = (time.perf_counter() - begin) * 1e3
    try:
        shape = (manifest.chunk, len(manifest.action_names))
        actions = decode_tensor(answer.actions, "actions", np.float32, shape)
    except CodecError as error:
        raise UsageError(f"the answer of {address} is unusable ({error}); see its log") from error
    return {
        "version": answer.version,
        "epoch": answer.epoch,
        "exec_ms": answer.exec_ms,
        "round_trip_ms": round_trip_ms,
        "episode": name,
        "step": step,
        "action_names": list(manifest.action_names),
        "actions": actions.tolist(),
        "recorded": data.action[step].tolist(),
    }


def _manifest(stub: Any, address: str) -> Manifest:
    status = _call(stub.Status, policy_pb2.StatusRequest(manifests=True), address)
    active = next((slot for slot in status.slots if slot.active), None)
    if active is None:
        raise UsageError(f"the policy server at {address} serves nothing; load a bundle")
    return Manifest.from_bytes(active.manifest_json.encode())


def _call(method: Any, request: Any, address: str) -> Any:
    try:
        return method(request, timeout=_DEADLINE_S)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE:
            raise UsageError(
                f"no policy server answers at {address}; start one with `ratchet serve`"
            ) from error
        detail = error.details() if isinstance(error, grpc.Call) else str(error)
        raise UsageError(f"the policy server at {address} would not answer: {detail}") from error
