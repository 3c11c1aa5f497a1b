"""The policy client's figures as Prometheus samples: who answers, how soon, and how pictures travel."""

from __future__ import annotations

from runtime.metrics import Metric
from runtime.policy_client import PolicyClient
from runtime.policy_switch import PolicySwitch


def policy_metrics(switch: PolicySwitch) -> list[Metric]:
    """Counters since the start; seconds and bytes."""
    return [
        Metric(
            "policy_local", "gauge", "1 while the robot's own policy server answers.", float(switch.on_local)
        ),
        Metric("policy_changes_total", "counter", "Changes from one server to the other.", switch.changes),
        *(m for name, client in switch.clients.items() for m in _client_metrics(name, client)),
    ]


def _client_metrics(server: str, client: PolicyClient) -> list[Metric]:
    labels = {"server": server}
    wire = client.wire.figures()
    p99_s = client.round_trip_ms.percentile(99) / 1e3
    return [
        Metric(
            "policy_failures_total",
            "counter",
            "Requests and heartbeats that failed.",
            client.failures,
            labels,
        ),
        Metric("policy_round_trip_p99_seconds", "gauge", "From an observation to its answer.", p99_s, labels),
        Metric(
            "policy_pictures_shared_total", "counter", "Sent in shared memory.", client.lane.shared, labels
        ),
        Metric("policy_pictures_sent_total", "counter", "Sent in the message.", client.lane.sent, labels),
        Metric(
            "policy_pictures_jpeg", "gauge", "1 when sent as JPEG.", float(wire.encoding == "jpeg"), labels
        ),
        Metric("policy_way_bytes_per_second", "gauge", "As measured; 0: unknown.", wire.bytes_per_s, labels),
    ]
