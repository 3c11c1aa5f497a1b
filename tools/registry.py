"""The registry as commands use it: one policy through all its versions, and who is champion.

A folder with the ledger (which decides), MLflow's database (a mirror for people) and the bundles.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from learner.config import LearnerConfig
from learner.ledger import Ledger, State
from learner.promotion import Promotion
from learner.serving import PolicyServer
from learner.tracking import Tracker
from policies.bundle import Bundle
from policies.keys import TrustStore
from protos.access.tls import Identity
from tools.config import parse
from tools.errors import UsageError

LEDGER = "ledger.sqlite"
BY = "operator"


@dataclass(frozen=True)
class Version:
    """One version as the ledger knows it. ``path`` is None when no bundle is on record."""

    version: str
    state: State
    since: str
    why: str
    parent: str | None
    path: Path | None


class Registry:
    """An open registry. Made by ``Registry.open``."""

    def __init__(self, root: Path, name: str, promotion: Promotion, tracker: Tracker) -> None:
        self.root = root
        self.name = name
        self.ledger: Ledger = promotion.ledger
        self.tracker = tracker
        self._promotion = promotion

    @classmethod
    @contextmanager
    def open(
        cls,
        root: Path,
        name: str,
        keys: Path,
        trust: Path,
        server: str | None = None,
        identity: Identity | None = None,
    ) -> Iterator[Registry]:
        """Open or make the registry in ``root``. With ``server`` (its address) a policy server follows it,
        to which ``identity`` is shown.

        Raises LedgerError, TrackingError, KeyStoreError; ServerError when the server does not answer.
        """
        raw = {"store": root, "work": root, "keys": keys, "trust": trust, "name": name}
        config = parse(LearnerConfig, raw, "--name")
        client = PolicyServer(server, identity=identity) if server is not None else None
        try:
            if client is not None:
                client.active()  # before anything is changed here
            tracker = Tracker(root / "tracking", name)
            promotion = Promotion(config, server=client, tracker=tracker)
            try:
                promotion.absorb()
                yield cls(root, name, promotion, tracker)
            finally:
                promotion.ledger.close()
        finally:
            if client is not None:
                client.close()

    @property
    def trust(self) -> TrustStore:
        """Whose bundles are accepted."""
        return self._promotion.trust

    def add(self, bundle: Bundle, why: str, run_id: str | None = None) -> Literal["champion", "candidate"]:
        """Take a verified bundle in: the first becomes champion, later ones are candidates for the gate."""
        if self.ledger.state(bundle.version) is not None:
            raise UsageError(f"bundle {bundle.version} is in the registry already; see `ratchet model ls`")
        kept = adopt(bundle, self.root, self.trust)
        self.tracker.register(self.name, kept.path, kept.version, run_id)
        if self.ledger.champion() is None:
            self._promotion.crown_first(kept.path, why=f"{why}; there was no champion to compare with")
            return "champion"
        self.ledger.record(
            kept.version,
            State.CANDIDATE,
            why=why,
            who=BY,
            parent=self.ledger.champion(),
            evidence={
                "path": str(kept.path.absolute().relative_to(self.root.absolute())),
                "dataset": kept.manifest.dataset,
                "content_id": kept.content_id,
            },
        )
        self.tracker.set_alias(self.name, "candidate", kept.version)
        return "candidate"

    def bundle(self, version: str) -> Bundle:
        """The verified bundle of a version, which may be cut short. Raises UsageError, BundleError."""
        found = [v for v in self.ledger_versions() if v.version.startswith(version)]
        if len(found) != 1:
            what = "no version" if not found else f"{len(found)} versions"
            raise UsageError(f"{what} {version!r} in {self.root}; see `ratchet model ls`")
        return self._promotion.bundle(found[0].version)

    def promote(self, version: str, without_gate: bool, why: str | None) -> Bundle:
        """Make a version champion, here and on the server; ``without_gate`` also one no gate has passed.

        Raises UsageError for a candidate that no gate has passed, ServerError when the server refuses it
        (then nothing changes), LedgerError when its state does not allow it.
        """
        bundle = self.bundle(version)
        state = self.ledger.state(bundle.version)
        if state is State.CANDIDATE and not without_gate:
            raise UsageError(
                f"{bundle.version} has passed no gate; run `ratchet learn`, or take it on your word with "
                "--without-gate --why REASON"
            )
        if state is not State.CHAMPION:
            if self._promotion.server is not None:
                self._promotion.server.load(bundle.path, activate=False)  # refused: nothing changes here
            reason = why or "promoted by hand"
            if state is State.CANDIDATE:
                reason = f"without a gate: {reason}"
                self.ledger.record(bundle.version, State.GATED, why=reason, who=BY)
            self.ledger.record(bundle.version, State.CHAMPION, why=reason, who=BY)
        # Also when it is champion: the server may not have heard of it.
        self._promotion.publish(bundle, by_person=True)
        return bundle

    def roll_back(self, why: str) -> Bundle:
        """Back to the champion before, here and on the server.

        Raises LedgerError when there is none, ServerError when the server refuses it (nothing changes).
        """
        return self._promotion.roll_back(why, who=BY)

    def ledger_versions(self) -> list[Version]:
        """Every version, in the order they came."""
        return versions(self.ledger, self.root)


def versions(ledger: Ledger, root: Path) -> list[Version]:
    """Every version of a ledger as it stands now, in the order they came."""
    latest: dict[str, Any] = {}
    parents: dict[str, str | None] = {}
    paths: dict[str, Path] = {}
    for entry in ledger.history():
        latest[entry.version] = entry
        parents[entry.version] = entry.parent or parents.get(entry.version)
        if "path" in entry.evidence:
            paths[entry.version] = root / entry.evidence["path"]
    return [
        Version(name, e.state, e.wall, e.why, parents[name], paths.get(name)) for name, e in latest.items()
    ]


def adopt(bundle: Bundle, root: Path, trust: TrustStore) -> Bundle:
    """The bundle, copied below ``root`` when it lies elsewhere: what the ledger names stays there."""
    if bundle.path.absolute().is_relative_to(root.absolute()):
        return bundle
    target = root / "bundles" / bundle.version
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(bundle.path, beside)
        beside.rename(target)
    return Bundle.open(target, trust)
