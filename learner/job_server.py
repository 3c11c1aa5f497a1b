# ruff: noqa: N802 (method names are the wire contract's)
"""A TrainingService on this machine: one job at a time, each in a process of its own.

Jobs live in folders; a service that is started again takes up what had not ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from pydantic import ValidationError

from learner.checkpoint import write_atomic
from learner.config import TrainConfig
from learner.errors import JobError
from learner.jobs import FETCHED_FILES, FINAL_STATES, PIECE_BYTES
from protos.ratchet.v1 import training_pb2, training_pb2_grpc

log = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}\Z")
_POLL_S = 0.1


class LocalTrainingService(training_pb2_grpc.TrainingServiceServicer):
    """The service. ``root`` holds the jobs, ``keys`` signs their bundles, ``trust`` is for parents."""

    def __init__(self, root: Path, keys: Path, trust: Path, *, nice: int = 10, idle: bool = False) -> None:
        self._root = root
        self._settings = {"keys": str(keys), "trust": str(trust), "nice": nice, "idle": idle}
        self._lock = threading.Condition()
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None
        self._stopping = False
        root.mkdir(parents=True, exist_ok=True)
        self._queue = [p.name for p in sorted(root.iterdir()) if self._state(p) not in FINAL_STATES]
        self._worker = threading.Thread(target=self._work, name="training-jobs", daemon=True)
        self._worker.start()

    # --- the interface ---------------------------------------------------------------------------

    def SubmitJob(
        self, request: training_pb2.SubmitJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.Job:
        if not _KEY.match(request.idempotency_key):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the idempotency key is no plain word")
        try:
            TrainConfig.model_validate_json(request.config_json)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"config {where}: {first['msg']}")
        if not Path(request.store).is_dir():
            context.abort(grpc.StatusCode.NOT_FOUND, f"no episode store at {request.store}")
        job = {
            **self._settings,
            "config": request.config_json,
            "store": request.store,
            "where": request.where,
            "parent": request.parent,
        }
        name = hashlib.sha256(request.idempotency_key.encode()).hexdigest()[:16]
        folder = self._root / name
        with self._lock:
            if not (folder / "job.json").exists():
                write_atomic(folder / "job.json", json.dumps(job).encode())
                self._queue.append(name)
                self._lock.notify_all()
            elif json.loads((folder / "job.json").read_text()) != job:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "this idempotency key belongs to another job")
        return self._job(folder)

    def GetJob(self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext) -> training_pb2.Job:
        return self._job(self._folder(request.id, context))

    def WatchJob(
        self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.Job]:
        folder = self._folder(request.id, context)
        last: training_pb2.Job | None = None
        while context.is_active():
            job = self._job(folder)
            if job != last:
                yield job
                last = job
            if job.state in FINAL_STATES:
                return
            time.sleep(_POLL_S)

    def CancelJob(
        self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.Job:
        folder = self._folder(request.id, context)
        with self._lock:
            if self._state(folder) not in FINAL_STATES:
                write_atomic(folder / "cancelled", b"")
                if self._running is not None and self._running[0] == folder.name:
                    os.killpg(self._running[1].pid, signal.SIGKILL)
        return self._job(folder)

    def FetchBundle(
        self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.BundlePiece]:
        folder = self._folder(request.id, context)
        if self._state(folder) != "succeeded":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"job is {self._state(folder)}")
        for name in FETCHED_FILES:
            yield from _pieces(folder / "bundle" / name)

    def stop(self) -> None:
        """Stop the running job's process (it can be taken up again) and the queue."""
        with self._lock:
            self._stopping = True
            if self._running is not None:
                os.killpg(self._running[1].pid, signal.SIGTERM)
            self._lock.notify_all()
        self._worker.join(timeout=30)

    # --- the queue -------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._stopping:
                    self._lock.wait()
                if self._stopping:
                    return
                name = self._queue.pop(0)
                if self._state(self._root / name) in FINAL_STATES:
                    continue
                process = self._start(name)
                self._running = name, process
            process.wait()
            with self._lock:
                self._running = None
                folder = self._root / name
                if self._state(folder) not in FINAL_STATES and not self._stopping:
                    detail = f"the worker ended with {process.returncode}"
                    write_atomic(folder / "result.json", json.dumps({"detail": detail}).encode())

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        log.info("job.start id=%s", name)
        folder = self._root / name
        with (folder / "log.txt").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "learner.job_worker", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _folder(self, name: str, context: grpc.ServicerContext) -> Path:
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not (self._root / name / "job.json").exists():
            context.abort(grpc.StatusCode.NOT_FOUND, f"no job {name!r}")
        return self._root / name

    def _state(self, folder: Path) -> str:
        if (folder / "result.json").exists():
            done = "bundle_version" in json.loads((folder / "result.json").read_text())
            return "succeeded" if done else "failed"
        if (folder / "cancelled").exists():
            return "cancelled"
        running = self._running is not None and self._running[0] == folder.name
        return "running" if running else "queued"

    def _job(self, folder: Path) -> training_pb2.Job:
        progress, result = _read(folder / "progress.json"), _read(folder / "result.json")
        return training_pb2.Job(
            id=folder.name,
            state=self._state(folder),
            step=progress.get("step", 0),
            steps=progress.get("steps", 0),
            loss=progress.get("loss", 0.0),
            detail=result.get("detail", ""),
            bundle_version=result.get("bundle_version", ""),
        )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _pieces(path: Path) -> Iterator[training_pb2.BundlePiece]:
    """A file in pieces; an empty one is one empty piece; the last piece carries the digest."""
    digest, offset, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while True:
            data = file.read(PIECE_BYTES)
            digest.update(data)
            last = offset + len(data) >= size
            sha256 = digest.hexdigest() if last else ""
            yield training_pb2.BundlePiece(file=path.name, offset=offset, data=data, sha256=sha256)
            offset += len(data)
            if last or not data:
                return


def start_server(service: LocalTrainingService, address: str) -> grpc.Server:
    """Serve at ``address`` (``unix:/path`` or loopback). Raises JobError when it cannot be bound."""
    server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="training-service"))
    training_pb2_grpc.add_TrainingServiceServicer_to_server(service, server)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise JobError(f"cannot listen at {address} ({error})", "choose another address") from error
    if not address.startswith("unix:") and bound == 0:
        raise JobError(f"cannot listen at {address}", "choose another address")
    server.start()
    return server
