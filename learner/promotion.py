"""Champion and candidates: who is in use, who may replace it, and the way back.

The order of a promotion, and of the way back: the server loads the bundle beside the champion, the
ledger records it, the server switches. What the server refuses changes nothing; a crash in between
leaves the old one serving, and ``reconcile`` finishes it. A server that has rolled back by itself, on
probation, is heard first: then it is the ledger that follows.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from learner.config import LearnerConfig
from learner.errors import GateError, ServerError
from learner.gate import Decision, judge, pair_up
from learner.ledger import Ledger, State
from learner.rollouts import EvaluateResult, Request, Rollouts
from learner.serving import PolicyServer
from learner.tracking import Tracker
from policies.bundle import Bundle
from policies.errors import BundleError
from policies.keys import KeyPair, TrustStore, ensure_key, write_public

log = logging.getLogger(__name__)


class Promotion:
    """Ledger, registry and policy server kept in step. ``server`` and ``tracker`` may be absent."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        server: PolicyServer | None = None,
        tracker: Tracker | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        self.config = config
        self.server = server
        self.tracker = tracker
        arguments = ("--trust", str(config.trust), *config.rollout_arguments)
        self.rollouts = rollouts or Rollouts(config.ratchet, arguments, config.rollout_timeout_s)
        self.key: KeyPair = ensure_key(config.keys)
        write_public(self.key.public, config.trust)
        self.trust = TrustStore.load(config.trust)
        self.ledger = Ledger(config.work / "ledger.sqlite")

    def champion(self) -> Bundle | None:
        """The verified bundle in use; None before the first. Raises BundleError when it is damaged."""
        version = self.ledger.champion()
        return None if version is None else self.bundle(version)

    def bundle(self, version: str) -> Bundle:
        """A bundle the ledger knows, verified. Raises GateError when it does not know it."""
        path = self.ledger.evidence(version, "path")
        if path is None:
            raise GateError(f"the ledger does not know bundle {version}", "see ratchet model ls")
        return Bundle.open(self.config.work / path, self.trust)

    def crown_first(self, path: Path, why: str) -> Bundle:
        """Make the first bundle champion: there is nothing to compare it with."""
        bundle = Bundle.open(path, self.trust)
        self._load(bundle)
        self.ledger.crown_first(bundle.version, why=why, evidence=self._evidence(bundle))
        self._announce(bundle)
        return bundle

    def judge(self, candidate: Bundle, folder: Path) -> tuple[Decision, EvaluateResult]:
        """Run candidate and champion on seeds no candidate was judged on before, and decide.

        The result is kept in ``folder`` and not run again. Raises GateError without a champion,
        RolloutError when the rollouts fail.
        """
        champion = self.champion()
        if champion is None:
            raise GateError("there is no champion to compare with", "crown a first bundle")
        ledger, config, version = self.ledger, self.config, candidate.version
        if ledger.state(version) is None:
            ledger.record(
                version,
                State.CANDIDATE,
                why="fine-tuned",
                parent=champion.version,
                evidence=self._evidence(candidate),
            )
        used = ledger.judged(besides=version, since_champion=False)
        first = config.seeds.gate + used * config.gate_pairs % (config.seeds.stride - config.gate_pairs)
        request = Request(candidate.path, first, config.gate_pairs, against=champion.path)
        result = self.rollouts.run(request, folder / "gate.json")
        checks = {"the calibration of its monitors": candidate.manifest.monitors is not None}
        decision = judge(
            pair_up(
                [e.model_dump() for e in result.episodes], [e.model_dump() for e in result.against or ()]
            ),
            config.gate,
            attempt=1 + ledger.judged(besides=version),
            latency_p99_ms=result.latency_ms_p99,
            checks=checks if config.require_calibration else None,
        )
        if ledger.state(version) is State.CANDIDATE and decision.verdict != "refuse":
            state = State.GATED if decision.promoted else State.REJECTED
            ledger.record(
                version, state, why="; ".join(decision.reasons), evidence={"decision": decision.to_json()}
            )
        return decision, result

    def publish(self, candidate: Bundle, *, by_person: bool = False) -> None:
        """Make a candidate that passed the gate champion, here and, on probation, on the server.

        ``by_person`` puts back also what the server had rolled back. Raises LedgerError when it did not
        pass, ServerError when the server refuses it (nothing changes).
        """
        if self.ledger.state(candidate.version) is not State.CHAMPION:
            self._load(candidate, by_person)
            self.ledger.record(candidate.version, State.CHAMPION, why="passed the gate")
        self._announce(candidate, by_person)

    def roll_back(self, why: str, who: str = "learner") -> Bundle:
        """Back to the champion before, here and on the server.

        Raises LedgerError when there is none, ServerError when the server refuses it (nothing changes).
        """
        earlier, given_up = self.ledger.predecessor(), self.ledger.champion()
        if earlier is None:
            self.ledger.roll_back(why=why, who=who)  # says what is the matter
            raise AssertionError("the ledger went back to nothing")
        bundle = self.bundle(earlier)
        self._load(bundle, by_person=True)
        self.ledger.roll_back(why=why, who=who)
        if self.server is not None:
            status = self.server.status()
            serving = next((slot.version for slot in status.slots if slot.active), None)
            if serving == given_up and status.previous == earlier:
                self.server.roll_back(why)
        self._announce(bundle, by_person=True)
        return bundle

    def absorb(self) -> str | None:
        """Write down what the server has done by itself; the version it gave up, if it was champion.

        Raises ServerError when the server is away.
        """
        if self.server is None or (champion := self.ledger.champion()) is None:
            return None
        for barred in self.server.status().barred:
            if barred.version == champion and barred.by_server and self.ledger.predecessor() is not None:
                log.warning("promotion.absorbed version=%s reason=%s", champion, barred.reason)
                earlier = self.ledger.roll_back(
                    why=f"on probation, {barred.wall}: {barred.reason}", who="policy server"
                )
                self._mirror(self.bundle(earlier))
                return champion
        return None

    def reconcile(self) -> None:
        """Hear what the server did, then have it serve the ledger's champion where a crash left another."""
        self.absorb()
        champion = self.champion()
        if champion is None or self.server is None:
            return
        if self.server.active() != champion.version:
            log.warning("promotion.reconciled version=%s", champion.version)
            self.server.load(champion.path, activate=True)

    def _load(self, bundle: Bundle, by_person: bool = False) -> None:
        if self.server is not None:
            for barred in () if by_person else self.server.status().barred:
                if barred.version == bundle.version:
                    raise ServerError(
                        f"the server rolled {bundle.version} back ({barred.reason})",
                        "only a person puts it back",
                    )
            loaded = self.server.load(bundle.path, activate=False)
            if loaded.version != bundle.version:
                raise ServerError(
                    f"the server loaded {loaded.version} instead of {bundle.version}", "check its paths"
                )

    def _announce(self, bundle: Bundle, by_person: bool = False) -> None:
        if self.server is not None and self.server.active() != bundle.version:
            if bundle.version in {slot.version for slot in self.server.status().slots}:
                self.server.swap(bundle.version, by_person=by_person)
            else:
                self.server.load(bundle.path, activate=True, by_person=by_person)
        self._mirror(bundle)

    def _mirror(self, bundle: Bundle) -> None:
        if self.tracker is not None:
            name = self.config.name
            if not self.tracker.known(name, bundle.version):
                self.tracker.register(name, bundle.path, bundle.version)
            self.tracker.set_alias(name, "champion", bundle.version)

    def _evidence(self, bundle: Bundle) -> dict[str, Any]:
        root, path = self.config.work.absolute(), bundle.path.absolute()
        if not path.is_relative_to(root):
            raise BundleError(f"{path} lies outside {root}; move it there before it is used")
        return {
            "path": str(path.relative_to(root)),
            "dataset": bundle.manifest.dataset,
            "content_id": bundle.content_id,
        }
