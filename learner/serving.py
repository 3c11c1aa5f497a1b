"""Telling the policy server what to serve, over its gRPC interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import grpc

from learner.config import LearnerConfig
from learner.errors import ServerError
from protos.access.tls import Identity, identity_in, open_sync_channel
from protos.ratchet.v1 import policy_pb2, policy_pb2_grpc


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bundle on the server: its version, whether it serves, and how long each step took."""

    version: str
    active: bool
    epoch: int
    verify_ms: float
    load_ms: float
    warm_ms: float


class PolicyServer:
    """Client of ``PolicyService`` for the life of bundles. Every call has a deadline.

    ``address`` is ``unix:/path`` or ``host:port``; over the network ``identity`` needs the role deploy.
    Raises CredentialsError for an identity that is missing or cannot be used.
    """

    def __init__(self, address: str, timeout_s: float = 120.0, identity: Identity | None = None) -> None:
        self._address = address
        self._identity = identity
        self._timeout_s = timeout_s
        self._channel = open_sync_channel(address, identity)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)

    def load(self, bundle: Path, *, activate: bool, backend: str = "", by_person: bool = False) -> Loaded:
        """Verify, load and warm ``bundle`` beside the serving one; serve it when ``activate``.

        ``by_person`` also puts back a version that was rolled back.

        Raises ServerError when the server is away or refuses it (the serving bundle stays).
        """
        request = policy_pb2.LoadRequest(
            path=str(bundle.absolute()), backend=backend, activate=activate, by_person=by_person
        )
        try:
            r = self._stub.Load(request, timeout=self._timeout_s, wait_for_ready=False)
        except grpc.RpcError as error:
            raise self._error(f"load {bundle.name}", error) from error
        return Loaded(r.version, r.active, r.epoch, r.verify_ms, r.load_ms, r.warm_ms)

    def swap(self, version: str, *, by_person: bool = False) -> policy_pb2.SwapResponse:
        """Serve a loaded bundle from the next request on; see `load`. Raises ServerError."""
        request = policy_pb2.SwapRequest(version=version, by_person=by_person)
        try:
            return self._stub.Swap(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._error(f"swap to {version}", error) from error

    def roll_back(self, why: str) -> policy_pb2.SwapResponse:
        """Serve what served before the last swap; the present version is barred. Raises ServerError."""
        try:
            return self._stub.Rollback(policy_pb2.RollbackRequest(why=why[:500]), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._error("roll back", error) from error

    def shadow(self, bundle: str, *, seconds: float = 0.0, stop: bool = False) -> policy_pb2.ShadowReport:
        """Have a version or path shadow the serving one, or ("") only report. Raises ServerError."""
        request = policy_pb2.ShadowRequest(bundle=bundle, seconds=seconds, stop=stop)
        try:
            return self._stub.Shadow(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._error(f"shadow {bundle}", error) from error

    def status(self) -> policy_pb2.StatusResponse:
        """What is loaded, on probation, barred. Raises ServerError."""
        try:
            return self._stub.Status(policy_pb2.StatusRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._error("ask for its status", error) from error

    def active(self) -> str | None:
        """Version being served; None when nothing is. Raises ServerError."""
        return next((slot.version for slot in self.status().slots if slot.active), None)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _why_not(self) -> str:
        if self._identity is None and not self._address.startswith("unix:"):
            return "start ratchet serve, or give --tls if it runs behind TLS"
        return "start ratchet serve"

    def _error(self, what: str, error: grpc.RpcError) -> ServerError:
        code = error.code() if isinstance(error, grpc.Call) else None
        detail = (error.details() or "") if isinstance(error, grpc.Call) else str(error)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return ServerError(f"policy server at {self._address} does not answer", self._why_not())
        return ServerError(f"policy server at {self._address} would not {what}: {detail}", "see its log")


def followed(config: LearnerConfig) -> PolicyServer | None:
    """The policy server that follows this learner's promotions, if the configuration names one.

    Raises CredentialsError for an identity that cannot be used.
    """
    if config.policy_server is None:
        return None
    identity = None if config.policy_identity is None else identity_in(config.policy_identity)
    return PolicyServer(config.policy_server, config.server_timeout_s, identity)
