"""Stage 7: a health model from the recorded episodes' telemetry, and a motor that is made to fail."""

from __future__ import annotations

from episodes.store import EpisodeStore
from learner.health.model import HealthModel, MotorHealth
from learner.health.telemetry import read_telemetry
from tools.demo import live
from tools.demo.plan import LIVE
from tools.demo.story import Demo
from tools.demo.teach import BASE_WHERE
from tools.sim import SimRobot

JOINT = "elbow_flex"
FRICTION_NM = 0.08
HEAT_C_S = 1.0


def fit(demo: Demo) -> HealthModel:
    """Learn what healthy motors look like from the demonstrations."""
    with EpisodeStore.open(demo.store, create=False, mode="r") as store:
        episodes = [read_telemetry(store.read(name)) for name in sorted(store.select(BASE_WHERE))]
    model = HealthModel.fit(episodes)
    model.save(demo.work / "health.safetensors")
    demo.say(
        f"health model of {len(episodes)} episodes; a motor is flagged above a score of {model.threshold:.1f}"
    )
    return model


def break_motor(demo: Demo, sim: SimRobot, model: HealthModel) -> None:
    """A healthy live episode, then the same with friction and heat added to one motor."""
    first = demo.plan.seeds(LIVE) + 400
    runs = {}
    runs["healthy"] = demo.runner.run(live.demonstrations(sim, [first], "covered"))
    sim.bench.motor_fault(JOINT, friction=FRICTION_NM, heat=HEAT_C_S)
    demo.say(f"the bench adds {FRICTION_NM} N·m of friction and {HEAT_C_S} °C/s to {JOINT}")
    runs["worn"] = demo.runner.run(live.demonstrations(sim, [first + 1], "covered"))
    sim.bench.motor_fault(JOINT)
    demo.figures["health"] = {"joint": JOINT, "threshold": model.threshold}
    for name, run in runs.items():
        scores = _score(sim, model, run.episodes[0].id)
        flagged = [score.joint for score in scores if score.flagged]
        worst = max(scores, key=lambda score: score.score)
        highest = f"highest score {worst.score:.1f} ({worst.joint}, {worst.evidence['worst']})"
        demo.say(f"{name}: flagged {', '.join(flagged) or 'nothing'}; {highest}")
        demo.figures["health"][name] = {
            "flagged": flagged,
            "scores": {score.joint: score.score for score in scores},
        }


def _score(sim: SimRobot, model: HealthModel, episode: str) -> list[MotorHealth]:
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        return model.score(read_telemetry(store.read(episode)))
