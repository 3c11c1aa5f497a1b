"""The judge of a probation: counts what is reported, and says when a bundle has passed or failed."""

from __future__ import annotations

import math
from typing import Literal

from policy_server.errors import RefusedBundleError
from policy_server.probation import ProbationConfig, bound_for, log_e_value, log_limit, row_limit
from policy_server.standing import Bar, Standing, Trial, now_label

Verdict = Literal["", "probation", "passed", "failed"]


class Judge:
    """Works on the `Standing` it is given; who acts on a verdict is not its affair."""

    def __init__(self, config: ProbationConfig, standing: Standing) -> None:
        self._config = config
        self._standing = standing
        self.reason = ""

    def begin(self, version: str, predecessor: str) -> None:
        """Put ``version`` on probation against the record of ``predecessor``."""
        config = self._config
        if config.episodes == 0:
            self.end()
            return
        tally = self._standing.record(predecessor)
        self._standing.trial = Trial(
            version=version,
            predecessor=predecessor,
            bound=bound_for(tally.failures, tally.episodes, config),
            left_s=config.minutes * 60.0,
        )

    def end(self) -> None:
        """No probation from here on."""
        self._standing.trial = None

    def bar(self, version: str, reason: str, by_server: bool) -> None:
        """A version is given up: it does not serve again by itself."""
        self.end()
        self._standing.bar(version, Bar(reason=reason[:512], wall=now_label(), by_server=by_server))

    def refuse_barred(self, version: str, remedy: str = "only a person puts it back") -> None:
        """Raise RefusedBundleError for a version that was given up."""
        bar = self._standing.barred.get(version)
        if bar is not None:
            raise RefusedBundleError(
                f"bundle {version} was rolled back on {bar.wall} ({bar.reason}); {remedy}"
            )

    def report(
        self, version: str, episode: str, failed: bool, flags: tuple[str, ...], mixed: bool
    ) -> Verdict:
        """Count one episode. An episode that several versions drove, or that is known, counts for none."""
        if mixed or not self._standing.first_report_of(episode):
            return ""
        failed = self.is_failure(failed, flags)
        tally, trial = self._standing.record(version), self._standing.trial
        tally.episodes += 1
        tally.failures += failed
        if trial is None or trial.version != version:
            return ""
        trial.episodes += 1
        trial.failures += failed
        trial.row = trial.row + 1 if failed else 0
        return self._verdict(trial)

    def is_failure(self, failed: bool, flags: tuple[str, ...]) -> bool:
        """Whether an episode counts as failed: somebody said so, or a monitor did."""
        return failed or bool(set(flags) & set(self._config.failure_flags))

    def pass_time(self, seconds: float) -> bool:
        """Let time pass; True when the probation has just been passed by it."""
        trial = self._standing.trial
        if trial is None:
            return False
        trial.left_s = max(trial.left_s - seconds, 0.0)
        if not self._time_is_enough(trial):
            return False
        self._passed(trial)
        return True

    def e_value(self) -> tuple[float, float]:
        """The evidence against the bundle on probation, and where it is given up."""
        trial = self._standing.trial
        evidence = 0.0 if trial is None else log_e_value(trial.failures, trial.episodes, trial.bound)
        return math.exp(min(evidence, 700.0)), math.exp(log_limit(self._config))

    def _verdict(self, trial: Trial) -> Verdict:
        config = self._config
        counts = f"{trial.failures} of {trial.episodes} episodes failed"
        if trial.row >= config.in_a_row and trial.row >= row_limit(trial.bound, config):
            self.reason = f"{counts}, the last {trial.row} in a row"
            return "failed"
        if log_e_value(trial.failures, trial.episodes, trial.bound) >= log_limit(config):
            value, limit = self.e_value()
            self.reason = (
                f"{counts}; bundle {trial.predecessor} fails in at most {trial.bound:.0%} "
                f"(e-value {value:.3g}, limit {limit:.3g})"
            )
            return "failed"
        if trial.episodes >= config.episodes or self._time_is_enough(trial):
            self._passed(trial)
            return "passed"
        return "probation"

    def _time_is_enough(self, trial: Trial) -> bool:
        """Whether the time is up, and enough was seen in it that was no worse than what is borne."""
        seen = trial.episodes >= math.ceil(self._config.episodes / 2)
        return trial.left_s <= 0.0 and seen and trial.failures <= trial.bound * trial.episodes

    def _passed(self, trial: Trial) -> None:
        reason = f"{trial.failures} of {trial.episodes} episodes failed"
        self._standing.note("passed", trial.version, trial.predecessor, reason)
        self.end()
