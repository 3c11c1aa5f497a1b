"""Errors of the learner. Each message is one line: what is wrong, where; what to do."""

from __future__ import annotations


class LearnerError(Exception):
    """Base of everything the learner raises on purpose.

    ``what`` says what is wrong and where; ``remedy`` says what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class ConfigError(LearnerError):
    """A configuration with an unknown key or a value out of bounds."""


class DataError(LearnerError):
    """Episodes that cannot be trained on: gaps, missing streams, mismatched shapes, too few."""


class DivergedError(LearnerError):
    """The loss or a gradient became NaN or infinite; the last good checkpoint is untouched."""


class StoppedError(LearnerError):
    """Training left off because it was asked to; its checkpoint can be continued."""


class CheckpointError(LearnerError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class CalibrationError(LearnerError):
    """Too few or malformed signals to set a monitor's thresholds."""


class GateError(LearnerError):
    """Results that cannot be judged: not paired, unknown slice, or a test too weak to decide."""


class LedgerError(LearnerError):
    """The ledger is damaged, or a state change is not allowed."""


class RolloutError(LearnerError):
    """``ratchet evaluate`` failed or wrote something that is not its result format."""


class JobError(LearnerError):
    """A training job cannot be submitted, was lost, or brought back damaged files."""


class ServerError(LearnerError):
    """The policy server is unreachable or refused a bundle."""


class HealthError(LearnerError):
    """Too little or malformed telemetry for a health model, or a damaged model file."""


class TrackingError(LearnerError):
    """The tracking database cannot be opened or written."""
