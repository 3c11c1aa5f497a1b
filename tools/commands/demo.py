"""`ratchet demo`: the loop closes, live, on the simulated bench."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.errors import UsageError

if TYPE_CHECKING:  # the demo's parts are heavy: loaded when it runs
    from tools.demo.story import Demo
    from tools.sim import SimRobot

EXAMPLES = """
\b
Examples:
  ratchet demo
  ratchet demo --quick
  ratchet demo --seed 3 --json result.json
"""
MARKER = ".ratchet-demo"


@click.command(epilog=EXAMPLES)
@click.option("--quick", is_flag=True, help="Every stage in under four minutes; promises no improvement.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures there.")
def demo(quick: bool, seed: int, out: Path, json_file: Path | None) -> None:
    """Teach, train, run, fail, correct, learn, judge, swap: the whole loop in at most ten minutes."""
    import uvloop

    from tools.demo import plan as plans
    from tools.demo.story import Demo as Story

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"--json {json_file}: its folder does not exist; make it first")
    plan = plans.quick(seed) if quick else plans.full(seed)
    _fresh_folder(out)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        story = Story(out.resolve(), plan, runner)
        if quick:
            story.say("quick: every stage is shown, with too little training to promise improvement")
        began = time.monotonic()
        with story.cleanup:
            _tell(story)
        held = _close(story, json_file, time.monotonic() - began)
    if plan.promise and not held:
        raise UsageError("not every promise of the demo held; the table above says which")


def _tell(story: Demo) -> None:
    """The stages in order."""
    from tools.demo import improve, motor_health, report, teach, worse
    from tools.robot_file import SimPaths

    with story.stage(1, "The bench, and an arm that follows a leader"):
        teach.live_demonstrations(story)
    with story.stage(2, "Demonstrations, with a gap"):
        teach.lockstep_demonstrations(story)
    with story.stage(3, "A first policy"):
        first = teach.first_policy(story)
    with story.stage(4, "The policy drives the arm at 30 Hz"), _robot(story, "drive", first) as sim:
        improve.crown(story, sim, first)
        improve.live_policy(story, sim)
    with story.stage(5, "Failures are flagged, and corrected"):
        improve.corrections(story)
    with story.stage(6, "The learner fine-tunes"):
        learner = improve.start_learner(story, SimPaths(story.robot("improve")).policy)
    swap = "… judges, and swaps while the arm drives"
    with story.stage(6, swap), _robot(story, "improve", first) as sim:
        round_report = improve.watch_round(story, sim, learner)
        improve.measure_swap(story, sim, round_report)
    with story.stage(7, "A motor that wears out"):
        motor_health.break_motor(story, motor_health.fit(story))
    with story.stage(8, "A candidate that is worse, and the audit on fresh seeds"):
        worse.refuse_worse(story)
        report.audit(story)


def _robot(story: Demo, name: str, bundle: Path) -> SimRobot:
    """A simulated robot that serves ``bundle``."""
    from tools.sim import SimSettings, start_sim

    settings = SimSettings(bundle=bundle, allow=[story.work], trust=story.keys, seed=story.plan.seed)
    return start_sim(story.robot(name), settings)


def _close(story: Demo, json_file: Path | None, seconds: float) -> bool:
    """Table, promises, JSON and picture; whether every promise held."""
    from tools.demo import report

    story.console.rule("[bold]What came of it", align="left")
    story.console.print(report.table(story))
    held = report.promises(story)
    for promise, kept in held.items():
        story.console.print(f"  [{'green' if kept else 'red'}]{'yes' if kept else 'NO '}[/] {promise}")
    picture = story.out / "demo.png"
    report.picture(story, picture)
    for path in filter(None, (story.out / "demo.json", json_file)):
        report.write_json(story, path)
    story.console.print(f"  {seconds:.0f} s in all; figures {story.out / 'demo.json'}, picture {picture}")
    return all(held.values())


def _fresh_folder(out: Path) -> None:
    """An empty folder of the demo's own; one that is somebody else's is not touched."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} is not empty and not from an earlier demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
