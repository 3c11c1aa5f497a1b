"""A job goes to a training service and its bundle comes home, whole and signed, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from learner_helpers import Shop, make_store, tiny_config

from learner.errors import JobError
from learner.job_server import LocalTrainingService, start_server
from learner.jobs import JobStatus, TrainingClient, _receive
from policies.errors import UnknownKeyError
from policies.keys import KeyPair, TrustStore
from protos.ratchet.v1 import training_pb2


@pytest.fixture
def client(tmp_path: Path, shop: Shop) -> Iterator[TrainingClient]:
    make_store(tmp_path / "store", demos=4, corrections=3).close()
    service = LocalTrainingService(tmp_path / "jobs", shop.keys, shop.keys, nice=0)
    address = f"unix:{tmp_path}/training.sock"
    server = start_server(service, address)
    with TrainingClient(address, timeout_s=10.0) as made:
        yield made
    server.stop(0).wait()
    service.stop()


def test_a_job_is_trained_watched_and_fetched(client: TrainingClient, tmp_path: Path, shop: Shop) -> None:
    config = tiny_config(steps=20)
    job = client.submit(config, tmp_path / "store", "", parent=shop.bundle.path, key="round-1")
    assert client.submit(config, tmp_path / "store", "", parent=shop.bundle.path, key="round-1").id == job.id
    with pytest.raises(JobError, match="belongs to another job"):
        client.submit(tiny_config(steps=21), tmp_path / "store", "", parent=shop.bundle.path, key="round-1")
    seen: list[JobStatus] = []
    done = client.watch(job.id, seen.append, timeout_s=90.0)
    assert done.state == "succeeded", done.detail
    assert done.step == done.steps == 20
    bundle = client.fetch(job.id, tmp_path / "home", shop.trust)
    assert bundle.version == done.bundle_version
    assert bundle.manifest.parent == shop.bundle.content_id
    stranger = TrustStore([KeyPair.generate().public])
    with pytest.raises(UnknownKeyError):
        client.fetch(job.id, tmp_path / "elsewhere", stranger)
    assert not (tmp_path / "elsewhere").exists()


def test_a_job_that_cannot_work_says_why(client: TrainingClient, tmp_path: Path) -> None:
    job = client.submit(tiny_config(), tmp_path / "store", "task = 'none'", key="empty")
    done = client.watch(job.id, timeout_s=60.0)
    assert done.state == "failed"
    assert "the selection holds no episode" in done.detail
    with pytest.raises(JobError, match="job is failed"):
        client.fetch(job.id, tmp_path / "home", TrustStore([KeyPair.generate().public]))


def test_a_running_job_can_be_cancelled(client: TrainingClient, tmp_path: Path) -> None:
    job = client.submit(tiny_config(steps=1_000_000), tmp_path / "store", "", key="endless")
    assert client.cancel(job.id).state == "cancelled"
    assert client.watch(job.id, timeout_s=30.0).state == "cancelled"


def test_nonsense_is_refused_at_the_door(client: TrainingClient, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no plain word"):
        client.submit(tiny_config(), tmp_path / "store", "", key="../../etc")
    with pytest.raises(JobError, match="no episode store"):
        client.submit(tiny_config(), tmp_path / "nowhere", "", key="a")
    with pytest.raises(JobError, match="no job"):
        client.get("../x")


def piece(file: str, data: bytes, offset: int = 0, sha256: str = "") -> training_pb2.BundlePiece:
    return training_pb2.BundlePiece(file=file, offset=offset, data=data, sha256=sha256)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([piece("../evil", b"x", sha256="0" * 64)], "no part of a bundle"),
        ([piece("manifest.json", b"x", sha256="0" * 64)], "arrived damaged"),
        ([piece("manifest.json", b"x", offset=5)], "arrived at offset 5 instead of 0"),
        ([piece("manifest.json", b"x")], "did not arrive whole"),
    ],
)
def test_damaged_deliveries_are_refused(
    pieces: list[training_pb2.BundlePiece], message: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=message):
        _receive(iter(pieces), tmp_path)
