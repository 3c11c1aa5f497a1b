"""One round, from recorded take-overs to a champion on the server, with everything real but the rollouts."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from learner_helpers import Shop, episode, make_store, record, tiny_config

from episodes.store import EpisodeStore
from learner.config import LearnerConfig
from learner.errors import GateError, LedgerError, RolloutError, ServerError
from learner.ledger import State
from learner.process import pending, run_round
from learner.promotion import Promotion
from learner.service import serve
from learner.serving import PolicyServer
from policies.bundle import Bundle
from protos.ratchet.v1 import policy_pb2, policy_pb2_grpc

FAKE = Path(__file__).with_name("fake_ratchet.py")


class Bench:
    """A store, a champion, and a fake ``ratchet`` whose success table can be set."""

    def __init__(self, root: Path, shop: Shop, **changes: object) -> None:
        self.root = root
        self.table = root / "table.json"
        make_store(root / "store").close()
        self.config = LearnerConfig.model_validate(
            {
                "store": root / "store",
                "work": root / "work",
                "keys": shop.keys,
                "trust": shop.keys,
                "name": "toy",
                "ratchet": (sys.executable, str(FAKE)),
                "rollout_arguments": ("--table", str(self.table)),
                "finetune": {"train": tiny_config(steps=12).model_dump()},
                "gate_pairs": 200,
                "calibration_rollouts": 70,
                "min_new_interventions": 3,
                **changes,
            }
        )
        self.rates(base=0.2, finetune=0.9, control=0.2)
        self.promotion = Promotion(self.config)
        self.first = self._crown(shop.bundle)

    def rates(self, **values: object) -> None:
        self.table.write_text(json.dumps(values))

    def calls(self) -> list[str]:
        path = self.table.with_suffix(".calls")
        return path.read_text().splitlines() if path.exists() else []

    def _crown(self, bundle: Bundle) -> Bundle:
        here = self.config.work / "bundles" / "first"
        shutil.copytree(bundle.path, here)
        return self.promotion.crown_first(here, "first")


@pytest.fixture
def bench(tmp_path: Path, shop: Shop) -> Bench:
    return Bench(tmp_path, shop)


def test_a_better_candidate_becomes_champion(bench: Bench) -> None:
    seen: list[str] = []
    report = run_round(
        bench.config, bench.promotion, control=True, progress=lambda stage, *_: seen.append(stage)
    )
    assert report.verdict == "promote", report.decision.reasons
    assert report.champion_before == bench.first.version
    assert report.champion_after == report.candidate
    assert report.corrections == 4
    champion = bench.promotion.champion()
    assert champion is not None
    assert champion.manifest.parent == bench.first.content_id
    assert champion.manifest.normalisation == bench.first.manifest.normalisation
    assert champion.manifest.monitors is not None
    assert report.control is not None
    assert {e.seed for e in report.control.episodes} == {e.seed for e in report.evaluation.episodes}
    assert {"finetune", "export", "calibrate", "judge", "control"} <= set(seen)
    kept = json.loads((bench.config.work / "rounds" / "0001" / "report.json").read_text())
    assert kept["verdict"] == "promote"


def test_a_worse_candidate_is_refused_and_everything_stays(bench: Bench) -> None:
    bench.rates(base=0.6, finetune=0.3, control=0.6)
    report = run_round(bench.config, bench.promotion)
    assert report.verdict == "reject"
    assert bench.promotion.ledger.champion() == bench.first.version
    assert bench.promotion.ledger.state(report.candidate) is State.REJECTED
    rejected = Bundle.open(bench.config.work / "rounds" / "0001" / "candidate", bench.promotion.trust)
    with pytest.raises(LedgerError, match="rejected and cannot become champion"):
        bench.promotion.publish(rejected)


def test_each_candidate_is_judged_on_fresh_seeds(bench: Bench) -> None:
    bench.rates(base=0.6, finetune=0.6, control=0.6)
    for _ in range(2):
        run_round(bench.config, bench.promotion)
    judged = [line.split()[0] for line in bench.calls() if line.split()[1] == "True"]
    assert len(judged) == 2
    assert judged[0].split(":")[1] == judged[1].split(":")[0]


def test_an_interrupted_round_goes_on_where_it_was(bench: Bench) -> None:
    table = bench.table.read_text()
    bench.rates(broken=1)
    with pytest.raises(RolloutError, match="no bundle there; check the path"):
        run_round(bench.config, bench.promotion)
    trained = bench.config.work / "rounds" / "0001" / "raw" / "manifest.json"
    before = trained.read_bytes()
    # What was recorded meanwhile belongs to the next round.
    with EpisodeStore.open(bench.config.store) as store:
        record(store, episode(200, taken_over_at=10), kind="rollout")
        assert pending(bench.config, store) == 1
    bench.table.write_text(table)
    stages: list[str] = []
    report = run_round(bench.config, bench.promotion, progress=lambda stage, *_: stages.append(stage))
    assert report.number == 1
    assert report.corrections == 4
    assert trained.read_bytes() == before
    assert "finetune" not in stages


def test_without_calibration_there_is_no_promotion(tmp_path: Path, shop: Shop) -> None:
    bench = Bench(tmp_path, shop, calibration_rollouts=0)
    report = run_round(bench.config, bench.promotion)
    assert report.verdict == "reject"
    assert report.decision.reasons == ("the calibration of its monitors does not hold",)


def test_roll_back_returns_to_the_champion_before(bench: Bench) -> None:
    run_round(bench.config, bench.promotion)
    assert bench.promotion.roll_back("failures rose").version == bench.first.version
    assert bench.promotion.ledger.champion() == bench.first.version


def test_without_a_champion_nothing_is_judged(tmp_path: Path, shop: Shop) -> None:
    bench = Bench(tmp_path, shop)
    empty = Promotion(bench.config.model_copy(update={"work": tmp_path / "other"}))
    with pytest.raises(GateError, match="no champion"):
        run_round(empty.config, empty)


class FakePolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Loads by reading the manifest's content id; remembers what it was told."""

    def __init__(self, trust: object) -> None:
        self.trust = trust
        self.slots: dict[str, bool] = {}
        self.refuse = False
        self.previous = ""
        self.said = ""
        self.barred: policy_pb2.Barred | None = None

    def Load(self, request: policy_pb2.LoadRequest, context: grpc.ServicerContext) -> policy_pb2.LoadResponse:
        if self.refuse:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "golden vectors differ")
        version = Bundle.open(request.path, self.trust).version  # type: ignore[arg-type]
        self.slots.setdefault(version, False)
        if request.activate:
            self.slots = {name: name == version for name in self.slots}
        return policy_pb2.LoadResponse(version=version, active=self.slots[version])

    def Swap(self, request: policy_pb2.SwapRequest, context: grpc.ServicerContext) -> policy_pb2.SwapResponse:
        if self.barred is not None and request.version == self.barred.version and not request.by_person:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "was rolled back")
        self.slots = {name: name == request.version for name in self.slots}
        return policy_pb2.SwapResponse(version=request.version)

    def Rollback(self, request: policy_pb2.RollbackRequest, context: object) -> policy_pb2.SwapResponse:
        self.said = request.why
        self.slots = {name: name == self.previous for name in self.slots}
        return policy_pb2.SwapResponse(version=self.previous)

    def Status(self, request: policy_pb2.StatusRequest, context: object) -> policy_pb2.StatusResponse:
        slots = [policy_pb2.Slot(version=v, active=a) for v, a in self.slots.items()]
        barred = [] if self.barred is None else [self.barred]
        return policy_pb2.StatusResponse(slots=slots, previous=self.previous, barred=barred)


@pytest.fixture
def policy_server(tmp_path: Path, shop: Shop):
    service = FakePolicyService(shop.trust)
    server = grpc.server(ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/policy.sock"
    server.add_insecure_port(address)
    server.start()
    yield service, address
    server.stop(0).wait()


def test_the_service_learns_when_enough_was_corrected(bench: Bench, policy_server) -> None:
    service, address = policy_server
    config = bench.config.model_copy(update={"policy_server": address, "nice": 0, "idle_scheduling": False})
    reports: list[object] = []
    lines: list[str] = []
    done = serve(config, threading.Event(), status=lines.append, on_round=reports.append, rounds=1)
    assert done == 1
    assert lines[0] == "learning from 4 new corrected episodes"
    champion = bench.promotion.ledger.champion()
    assert champion != bench.first.version
    assert [v for v, active in service.slots.items() if active] == [champion]


def test_a_server_that_refuses_keeps_the_champion(bench: Bench, policy_server) -> None:
    service, address = policy_server
    service.refuse = True
    promotion = Promotion(bench.config, server=PolicyServer(address, timeout_s=5.0))
    with pytest.raises(ServerError, match="golden vectors differ"):
        run_round(bench.config, promotion)
    assert promotion.ledger.champion() == bench.first.version
    service.refuse = False
    report = run_round(bench.config, promotion)
    assert report.number == 1
    assert report.verdict == "promote"
    assert service.slots == {bench.first.version: False, report.candidate: True} or service.slots == {
        report.candidate: True
    }


def test_a_roll_back_that_the_server_refuses_changes_nothing(bench: Bench, policy_server) -> None:
    service, address = policy_server
    promotion = Promotion(bench.config, server=PolicyServer(address, timeout_s=5.0))
    report = run_round(bench.config, promotion)
    service.refuse = True
    with pytest.raises(ServerError, match="golden vectors differ"):
        promotion.roll_back("drops the cube")
    assert promotion.ledger.champion() == report.candidate
    service.refuse, service.previous = False, bench.first.version
    assert promotion.roll_back("drops the cube").version == bench.first.version
    assert promotion.ledger.champion() == bench.first.version
    assert service.said == "drops the cube"
    assert service.slots[bench.first.version]


def test_what_the_server_gave_up_on_probation_stays_given_up(bench: Bench, policy_server) -> None:
    service, address = policy_server
    promotion = Promotion(bench.config, server=PolicyServer(address, timeout_s=5.0))
    report = run_round(bench.config, promotion)
    service.slots = {bench.first.version: True, report.candidate: False}
    service.barred = policy_pb2.Barred(version=report.candidate, reason="5 of 6 failed", by_server=True)
    promotion.reconcile()
    assert promotion.ledger.champion() == bench.first.version
    entry = promotion.ledger.history(report.candidate)[-1]
    assert (entry.state, entry.who) == (State.ROLLED_BACK, "policy server")
    assert "5 of 6 failed" in entry.why
    assert service.slots[bench.first.version]
    with pytest.raises(ServerError, match="only a person"):
        promotion._load(promotion.bundle(report.candidate))
    rows = len(promotion.ledger.history())
    promotion.reconcile()
    assert len(promotion.ledger.history()) == rows


def test_an_absent_server_is_one_line(tmp_path: Path) -> None:
    server = PolicyServer(f"unix:{tmp_path}/nobody.sock", timeout_s=1.0)
    with server, pytest.raises(ServerError, match="does not answer; start ratchet serve"):
        server.active()
