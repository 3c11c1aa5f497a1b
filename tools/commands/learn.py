"""`ratchet learn`: the learner, waiting for corrections, or one round of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from learner.config import LearnerConfig
from learner.process import RoundReport, Stage, StageProgress
from runtime.notify import Notifier
from tools.config import load
from tools.console import disk_errors, say, show_json
from tools.errors import UsageError
from tools.options import PATH, json_flag

EXAMPLES = """
\b
Examples:
  ratchet learn --config learner.toml
  ratchet learn --config learner.toml --once --json

\b
The file, in TOML:
  store = "episodes"        # where the robot records
  work = "registry/policy"  # ledger, tracking, bundles and rounds
  keys = "keys"             # signs what is learnt
  trust = "keys"            # whose bundles are accepted
  policy_server = "unix:/run/ratchet/policy.sock"   # follows promotions; leave out for none
"""


@click.command(epilog=EXAMPLES)
@click.option("--config", type=PATH, default=Path("learner.toml"), show_default=True)
@click.option("--once", is_flag=True, help="Run one round if there is enough to learn from, and end.")
@click.option("--control", is_flag=True, help="With --once: also the same round without the corrections.")
@json_flag
def learn(config: Path, once: bool, control: bool, as_json: bool) -> None:
    """Fine-tune on take-overs, judge the result on paired rollouts, and publish what is better.

    Waits for flagged and corrected episodes. May be stopped at any time: a round that was interrupted
    goes on when it is started again.
    """
    if not config.exists():
        raise UsageError(f"no configuration at {config}; `ratchet learn --help` shows what it holds")
    settings = load(LearnerConfig, config)
    with disk_errors(settings.work):
        if once:
            _once(settings, control, as_json)
        else:
            _serve(settings, as_json)


def _once(settings: LearnerConfig, control: bool, as_json: bool) -> None:
    from episodes.store import EpisodeStore
    from learner.device import lower_priority, one_thread_beside
    from learner.process import pending, run_round
    from learner.promotion import Promotion
    from learner.serving import followed
    from learner.tracking import Tracker

    with EpisodeStore.open(settings.store, create=False, mode="r") as store:
        waiting = pending(settings, store)
    interrupted = any(
        not (p.parent / "report.json").exists() for p in settings.work.glob("rounds/*/selection.json")
    )
    if not interrupted and waiting < settings.min_new_interventions:
        say(f"nothing to do: {waiting} new corrected episodes, {settings.min_new_interventions} make a round")
        if as_json:
            show_json({"round": None, "waiting": waiting})
        return
    lower_priority(settings.nice, settings.idle_scheduling)
    one_thread_beside(settings.policy_server is not None, settings.finetune.train.threads)
    server = followed(settings)
    try:
        tracker = Tracker(settings.work / "tracking", settings.name)
        promotion = Promotion(settings, server=server, tracker=tracker)
        with _stages() as progress:
            report = run_round(settings, promotion, control=control, progress=progress)
        promotion.ledger.close()
    finally:
        if server is not None:
            server.close()
    _show(report, as_json)


def _serve(settings: LearnerConfig, as_json: bool) -> None:
    from learner.service import serve

    stop = threading.Event()
    notifier = Notifier.from_environment()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping after this round; once more ends it at once, and it goes on next time")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        notifier.ready("waiting for corrections")
        with _stages() as progress:
            serve(
                settings,
                stop,
                status=_changes(notifier),
                progress=_feeding(notifier, progress),
                on_round=lambda report: _show(report, as_json),
            )
    finally:
        notifier.stopping()
        for number, old in before.items():
            signal.signal(number, old)


def _feeding(notifier: Notifier, progress: StageProgress) -> StageProgress:
    """Progress of a stage also feeds systemd's watchdog: a learner that hangs is started again."""

    def fed(stage: Stage, done: int, total: int, loss: float) -> None:
        notifier.watchdog()
        progress(stage, done, total, loss)

    return fed


def _changes(notifier: Notifier) -> Callable[[str], None]:
    """Says a line, also to systemd, only when it is another than the last; each one is a sign of life."""
    last = ""

    def status(line: str) -> None:
        nonlocal last
        notifier.watchdog()
        if line != last:
            last = line
            say(line)
            notifier.status(line)

    return status


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int, float], None]]:
    """A bar for the stage that runs."""
    from contextlib import ExitStack

    from tools.progress import Update, bar

    with ExitStack() as stack:
        current: list[tuple[str, ExitStack, Update]] = []

        def progress(stage: str, done: int, total: int, loss: float) -> None:
            if not current or current[-1][0] != stage:
                if current:
                    current.pop()[1].close()
                inner = stack.enter_context(ExitStack())
                current.append((stage, inner, inner.enter_context(bar(stage, max(1, total)))))
            current[-1][2](done, f"loss {loss:.4f}" if loss else "")

        yield progress


def _show(report: RoundReport, as_json: bool) -> None:
    if as_json:
        show_json(report.to_json())
        return
    click.echo(
        f"round {report.number}: {report.verdict}; {report.candidate} (from {report.corrections} corrected "
        f"and {report.base_episodes} other episodes) against {report.champion_before}"
    )
    for reason in report.decision.reasons:
        click.echo(f"  {reason}")
    if report.waiting is not None:
        click.echo(f"  fine-tuning waited for data {report.waiting:.1%} of its time")
    click.echo(f"champion: {report.champion_after}")
