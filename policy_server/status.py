"""What the server says of itself: bundles, counts, clients, batches, shared memory."""

from __future__ import annotations

import time

from policy_server.clients import Client, Clients
from policy_server.inference import InferenceWorker
from policy_server.lanes import Lanes
from policy_server.slots import BundleSlots, Slot
from protos.ratchet.v1 import policy_pb2 as pb


def describe(
    slots: BundleSlots, worker: InferenceWorker, clients: Clients, lanes: Lanes, manifests: bool
) -> pb.StatusResponse:
    """The answer to `Status`; ``manifests`` puts each bundle's manifest in, which may be large."""
    counters = worker.counters
    active = slots.serving.slot if slots.serving else None
    clients.forget(time.monotonic_ns())
    return pb.StatusResponse(
        # An idle one whose engine has ended is not there until it is loaded again.
        slots=[_slot(s, s is active, manifests) for s in slots.slots if s is active or s.alive],
        epoch=slots.epoch,
        served=counters.served,
        failed=counters.failed,
        dropped=counters.dropped,
        refused=counters.refused,
        exec_ms_p50=counters.percentile(50),
        exec_ms_p99=counters.percentile(99),
        clients=[_client(client) for client in clients],
        waiting=worker.waiting,
        lanes=len(lanes),
        lane_bytes=lanes.size,
        batches=_batches(active),
    )


def _slot(slot: Slot, active: bool, manifest: bool) -> pb.Slot:
    return pb.Slot(
        version=slot.version,
        backend=slot.backend,
        active=active,
        chunk=slot.manifest.chunk,
        cameras=[camera.name for camera in slot.spec.cameras],
        pid=slot.pid,
        path=str(slot.path),
        manifest_json=slot.manifest.model_dump_json() if manifest else "",
    )


def _client(client: Client) -> pb.ClientStatus:
    return pb.ClientStatus(
        session=client.session,
        last_seen_ms=(time.monotonic_ns() - client.seen_ns) / 1e6,
        served=client.served,
        dropped=client.dropped,
        refused=client.refused,
        failed=client.failed,
        in_flight=client.in_flight,
        shared=client.shared,
        sent=client.sent,
    )


def _batches(slot: Slot | None) -> list[pb.BatchStatus]:
    if slot is None:
        return []
    costs = slot.costs
    return [
        pb.BatchStatus(size=size, exec_ms=costs.expected_ns(size) / 1e6, runs=costs.runs[size])
        for size in costs.sizes
    ]
