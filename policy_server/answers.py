"""Deployment in the words of policy.proto: what `Status`, `Shadow` and `Load` answer."""

from __future__ import annotations

import dataclasses

from policy_server.deployment import Deployment
from policy_server.loading import Loaded
from policy_server.shadow import Compared
from policy_server.slots import BundleSlots, Serving
from protos.ratchet.v1 import policy_pb2 as pb


def add_deployment(
    response: pb.StatusResponse, slots: BundleSlots, deployment: Deployment, shadow: Compared | None
) -> None:
    """Fill in what a status says of swaps, probation and shadow."""
    standing, previous = deployment.standing, slots.previous
    for message in response.slots:
        message.previous = previous is not None and (message.version, message.backend) == (
            previous.version,
            previous.backend,
        )
    response.previous = previous.version if previous else ""
    if standing.trial is not None:
        response.probation.CopyFrom(_probation(deployment))
    response.barred.extend(
        pb.Barred(version=version, reason=bar.reason, wall=bar.wall, by_server=bar.by_server)
        for version, bar in standing.barred.items()
    )
    response.events.extend(
        pb.SwapEvent(wall=e.wall, kind=e.kind, version=e.version, previous=e.previous, reason=e.reason)
        for e in standing.events
    )
    if shadow is not None:
        response.shadow.CopyFrom(shadow_report(shadow))


def shadow_report(found: Compared | None) -> pb.ShadowReport:
    """An empty one before the first shadow."""
    if found is None:
        return pb.ShadowReport()
    return pb.ShadowReport(**dataclasses.asdict(found))


def load_response(loaded: Loaded, serving: Serving | None, epoch: int) -> pb.LoadResponse:
    """What became of a load."""
    return pb.LoadResponse(
        version=loaded.slot.version,
        verify_ms=loaded.verify_ms,
        load_ms=loaded.load_ms,
        warm_ms=loaded.warm_ms,
        active=serving is not None,
        epoch=epoch,
    )


def _probation(deployment: Deployment) -> pb.Probation:
    trial = deployment.standing.trial
    assert trial is not None
    e_value, e_limit = deployment.judge.e_value()
    return pb.Probation(
        version=trial.version,
        predecessor=trial.predecessor,
        episodes=trial.episodes,
        failures=trial.failures,
        of_episodes=deployment.of_episodes,
        remaining_s=trial.left_s,
        bound=trial.bound,
        e_value=e_value,
        e_limit=e_limit,
    )
