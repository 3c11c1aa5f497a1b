"""The fleet's topic tree: ``ratchet/v1/{site}/{robot}/…``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEVEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one robot."""

    site: str
    robot: str

    @property
    def audience(self) -> str:
        """How a command names this robot."""
        return f"{self.site}/{self.robot}"

    @property
    def root(self) -> str:
        """Everything of this robot lies under here."""
        return f"ratchet/v1/{self.site}/{self.robot}"

    @property
    def status(self) -> str:
        """Retained birth and will."""
        return f"{self.root}/status"

    @property
    def factsheet(self) -> str:
        """Retained: what the robot is and which operations it takes."""
        return f"{self.root}/factsheet"

    @property
    def state(self) -> str:
        """Retained snapshot, on change and at least every ten seconds."""
        return f"{self.root}/state"

    @property
    def commands(self) -> str:
        """Subscription for every command."""
        return f"{self.root}/cmd/+"

    @property
    def event(self) -> str:
        """Not retained: what happened."""
        return f"{self.root}/event"

    @property
    def summary(self) -> str:
        """Not retained, lossy: telemetry."""
        return f"{self.root}/tm/summary"

    def command(self, op: str) -> str:
        """Where a command is sent."""
        return f"{self.root}/cmd/{op}"

    def response(self, client: str) -> str:
        """Where replies for ``client`` go."""
        return f"{self.root}/resp/{client}"

    def is_response(self, topic: str) -> bool:
        """True for a reply topic of this robot: a sender cannot make it publish anywhere else."""
        prefix = f"{self.root}/resp/"
        return topic.startswith(prefix) and _LEVEL.fullmatch(topic[len(prefix) :]) is not None
