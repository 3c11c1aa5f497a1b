"""Training elsewhere: submit a job to a TrainingService, watch it, bring its bundle home.

What comes back is verified like any bundle and then has to pass the same gate as one trained here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import grpc

from learner.config import TrainConfig
from learner.errors import JobError
from policies.bundle import Bundle
from policies.keys import TrustStore
from policies.manifest import BUNDLE_FILES
from protos.ratchet.v1 import training_pb2, training_pb2_grpc

log = logging.getLogger(__name__)

FINAL_STATES = ("succeeded", "failed", "cancelled")
FETCHED_FILES = (*BUNDLE_FILES, "manifest.json", "signature")
PIECE_BYTES = 256 * 1024
_MAX_BYTES = 6 * 2**30


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands: queued, running, succeeded, failed or cancelled."""

    id: str
    state: str
    step: int
    steps: int
    loss: float
    detail: str
    bundle_version: str

    @property
    def final(self) -> bool:
        """Whether it will not change any more."""
        return self.state in FINAL_STATES


class TrainingClient:
    """Client of a TrainingService at ``address``. Every call has a deadline."""

    def __init__(self, address: str, timeout_s: float = 30.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address)
        self._stub = training_pb2_grpc.TrainingServiceStub(self._channel)

    def submit(
        self, config: TrainConfig, store: Path, where: str, *, parent: Path | None = None, key: str
    ) -> JobStatus:
        """Queue a job. The same idempotency ``key`` gives the same job, however often it is submitted.

        ``parent`` fine-tunes that bundle: episodes with interventions are then the corrections. Raises
        JobError.
        """
        request = training_pb2.SubmitJobRequest(
            idempotency_key=key,
            config_json=config.model_dump_json(),
            store=str(store),
            where=where,
            parent=str(parent) if parent else "",
        )
        try:
            return _status(self._stub.SubmitJob(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise self._error("take the job", error) from error

    def get(self, job: str) -> JobStatus:
        """The job as it is now. Raises JobError."""
        try:
            return _status(self._stub.GetJob(training_pb2.GetJobRequest(id=job), timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise self._error(f"find job {job}", error) from error

    def cancel(self, job: str) -> JobStatus:
        """Stop it. Raises JobError."""
        try:
            return _status(self._stub.CancelJob(training_pb2.GetJobRequest(id=job), timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise self._error(f"cancel job {job}", error) from error

    def watch(
        self, job: str, progress: Callable[[JobStatus], None] | None = None, timeout_s: float = 86_400.0
    ) -> JobStatus:
        """Wait for the end of a job, calling ``progress`` at each change. Raises JobError."""
        last: JobStatus | None = None
        try:
            for message in self._stub.WatchJob(training_pb2.GetJobRequest(id=job), timeout=timeout_s):
                last = _status(message)
                if progress is not None:
                    progress(last)
        except grpc.RpcError as error:
            raise self._error(f"report on job {job}", error) from error
        if last is None or not last.final:
            raise JobError(f"the training service stopped reporting on job {job}", "watch it again")
        return last

    def fetch(self, job: str, out: Path, trust: TrustStore) -> Bundle:
        """Bring the finished bundle to ``out`` (which must not exist) and verify it.

        Raises JobError when a file arrives damaged, BundleError when the bundle is not trustworthy;
        ``out`` does not exist then.
        """
        if out.exists():
            raise JobError(f"{out} exists", "choose another directory")
        beside = out.with_name(out.name + ".partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            pieces = self._stub.FetchBundle(
                training_pb2.GetJobRequest(id=job), timeout=max(600.0, self._timeout_s)
            )
            _receive(pieces, beside)
            Bundle.open(beside, trust)
            beside.rename(out)
        except grpc.RpcError as error:
            raise self._error(f"send the bundle of job {job}", error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return Bundle.open(out, trust)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> TrainingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _error(self, what: str, error: grpc.RpcError) -> JobError:
        detail = (error.details() or str(error.code())) if isinstance(error, grpc.Call) else str(error)
        return JobError(
            f"training service at {self._address} would not {what}: {detail}",
            "see whether it runs, and its log",
        )


def _status(message: training_pb2.Job) -> JobStatus:
    return JobStatus(
        message.id,
        message.state,
        message.step,
        message.steps,
        message.loss,
        message.detail,
        message.bundle_version,
    )


def _receive(pieces: Iterator[training_pb2.BundlePiece], folder: Path) -> None:
    """Write the pieces, in order, each file checked against the digest on its last piece."""
    digests: dict[str, hashlib._Hash] = {}
    complete: set[str] = set()
    total = 0
    for piece in pieces:
        name = piece.file
        if name not in FETCHED_FILES or name in complete:
            raise JobError(f"the training service sent a file {name!r}, no part of a bundle", "update it")
        path = folder / name
        at = path.stat().st_size if path.exists() else 0
        total += len(piece.data)
        if piece.offset != at or total > _MAX_BYTES:
            raise JobError(f"{name} arrived at offset {piece.offset} instead of {at}", "fetch it again")
        with path.open("ab") as file:
            file.write(piece.data)
        digest = digests.setdefault(name, hashlib.sha256())
        digest.update(piece.data)
        if piece.sha256:
            if digest.hexdigest() != piece.sha256:
                raise JobError(f"{name} arrived damaged", "fetch it again")
            complete.add(name)
    if complete != set(FETCHED_FILES):
        missing = sorted(set(FETCHED_FILES) - complete)
        raise JobError(f"{missing[0]} did not arrive whole", "fetch it again")
