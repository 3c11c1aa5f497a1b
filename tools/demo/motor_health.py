"""Stage 7: a health model from the recorded episodes' telemetry, and a motor that is made to fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from episodes.store import EpisodeStore
from learner.health.model import HealthModel
from learner.health.telemetry import read_telemetry
from tools.demo.plan import HEALTH
from tools.demo.story import Demo
from tools.demo.teach import BASE_WHERE
from tools.lockstep import MotorFault, demonstrate

EPISODES = 6
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


def break_motor(demo: Demo, model: HealthModel) -> None:
    """Healthy episodes on fresh seeds, then the same scenes with friction and heat added to one motor."""
    first = demo.plan.seeds(HEALTH)
    seeds = list(range(first, first + EPISODES))
    fault = MotorFault(JOINT, FRICTION_NM, HEAT_C_S)
    demo.figures["health"] = {"joint": JOINT, "threshold": model.threshold, "episodes": EPISODES}
    for name, wear in (("healthy", None), ("worn", fault)):
        if wear is not None:
            demo.say(f"the bench adds {FRICTION_NM} N·m of friction and {HEAT_C_S} °C/s to {JOINT}")
        store = demo.out / f"health-{name}"
        demonstrate(store, seeds, "covered", demo.plan.workers, fault=wear)
        flagged = _flagged(store, model)
        demo.say(f"{name}: {_words(flagged)}")
        demo.figures["health"][name] = {"flagged": dict(flagged)}


def _flagged(path: Path, model: HealthModel) -> Counter[str]:
    """In how many of the store's episodes each motor is flagged."""
    with EpisodeStore.open(path, create=False, mode="r") as store:
        scores = [model.score(read_telemetry(store.read(name))) for name in sorted(store.ids())]
    return Counter(score.joint for episode in scores for score in episode if score.flagged)


def _words(flagged: Counter[str]) -> str:
    if not flagged:
        return f"no motor flagged in {EPISODES} episodes"
    return ", ".join(f"{joint} flagged in {count} of {EPISODES} episodes" for joint, count in flagged.items())
