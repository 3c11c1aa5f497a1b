"""Episodes in lockstep: demonstrations, policy rollouts in batches, and take-overs from failing states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hal.bench.demonstrator import Demonstrator
from hal.bench.world import Region, TaskState
from policies.session import PolicySession
from runtime.chunks import Player
from runtime.control import NS_PER_S, ControlConfig, Controller
from runtime.line import LineFaults, LockstepLine
from runtime.lockstep import LockstepArm
from runtime.monitors import MonitorBank, MonitorConfig
from runtime.nouns import ActionChunk, Flag, Observation, Source, Vector
from runtime.recorder import EpisodeRecorder

DEMONSTRATION_LIMIT_TICKS = 240
SETTLE_TICKS = 5  # recorded after success, so that a policy also learns to stay away


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one episode came to. ``slice`` says whether the cube started in the gap.

    ``goals`` are the goals let through, rad (6,), one a tick; ``seams`` the ticks from which on another
    chunk had its say; ``asked`` counts requests for a chunk.
    """

    seed: int
    success: bool
    ticks: int
    slice: str
    flags: tuple[str, ...]
    episode_id: str | None
    intervened: bool
    errors: tuple[tuple[int, float], ...] = ()
    features: tuple[tuple[int, Any], ...] = ()
    goals: tuple[Vector, ...] = field(default=(), compare=False)
    seams: tuple[int, ...] = ()
    asked: int = 0


class ScriptedOperator:
    """Stands in for the person who watches an unattended arm and takes over when it has gone wrong.

    He steps in when nothing has been lifted by ``patience_ticks``, when the object was dropped, or
    when the task's time is nearly up. A real person does this by grabbing the leader arm.
    """

    def __init__(self, patience_ticks: int = 60, limit_ticks: int = 200) -> None:
        self._patience = patience_ticks
        self._limit = limit_ticks

    def steps_in(self, tick: int, task: TaskState) -> bool:
        """Whether to take over at this tick."""
        if task.success:
            return False
        return task.dropped or (tick >= self._patience and not task.lifted) or tick >= self._limit


@dataclass(slots=True)
class _Run:
    """One episode of a batch while it runs."""

    arm: LockstepArm
    controller: Controller
    seed: int
    slice: str
    recorder: EpisodeRecorder | None
    episode_id: str | None
    line: LockstepLine
    expert: Demonstrator | None = None
    done: bool = False
    success: bool = False
    tick: int = 0
    deadline: int = 0
    taken_over_at: int | None = None
    flags: list[Flag] = field(default_factory=list)
    features: list[tuple[int, Any]] = field(default_factory=list)
    goals: list[Vector] = field(default_factory=list)
    seams: list[int] = field(default_factory=list)


class RolloutRunner:
    """Runs policy episodes on a batch of lockstep arms that share one policy session.

    ``faults`` is what the way to the policy does to requests; ``player`` makes another chunk player
    than the controller's own, such as the one a benchmark compares it with.
    """

    def __init__(
        self,
        arms: Sequence[LockstepArm],
        session: PolicySession,
        config: ControlConfig,
        thresholds: dict[str, Any] | None,
        *,
        recorder: EpisodeRecorder | None = None,
        operator: ScriptedOperator | None = None,
        task: str = "",
        faults: LineFaults | None = None,
        player: Callable[[], Player] | None = None,
    ) -> None:
        if recorder is not None and len(arms) != 1:
            raise ValueError("a recorder follows one arm at a time")
        self._arms = list(arms)
        self._session = session
        self._config = config
        self._thresholds = thresholds
        self._recorder = recorder
        self._operator = operator
        self._task = task
        self._faults = faults or LineFaults()
        self._player = player

    def run(
        self, seeds: Sequence[int], region: Region, progress: Callable[[int], None] | None = None
    ) -> list[Rollout]:
        """One episode a seed, in batches of as many arms as there are; results in seed order."""
        results: list[Rollout] = []
        for at in range(0, len(seeds), len(self._arms)):
            batch = seeds[at : at + len(self._arms)]
            results += self._run_batch(batch, region)
            if progress is not None:
                progress(len(results))
        return results

    def _run_batch(self, seeds: Sequence[int], region: Region) -> list[Rollout]:
        runs = [
            self._begin(arm, seed, region) for arm, seed in zip(self._arms[: len(seeds)], seeds, strict=True)
        ]
        while any(not run.done for run in runs):
            self._tick([run for run in runs if not run.done])
        return [_result(run) for run in runs]

    def _begin(self, arm: LockstepArm, seed: int, region: Region) -> _Run:
        arm.reset(seed, region)
        bank = MonitorBank(MonitorConfig(), self._thresholds, self._config.task_limit_ticks)
        controller = Controller(self._config, bank, self._player() if self._player else None)
        controller.begin()
        episode_id = None
        if self._recorder is not None:
            provenance = {"policy": self._session.version, "seed": seed, "region": region}
            name = f"rollout-{self._session.version}-{region}-{seed:06d}"
            episode_id = self._recorder.start(self._task, "rollout", provenance, name)
        return _Run(
            arm=arm,
            controller=controller,
            seed=seed,
            slice="gap" if arm.task().in_gap else "covered",
            recorder=self._recorder,
            episode_id=episode_id,
            line=LockstepLine(self._faults, seed, self._config.period_ns / NS_PER_S),
            deadline=self._config.task_limit_ticks + 1,  # the tick on which time is up counts
        )

    def _tick(self, runs: list[_Run]) -> None:
        observations = []
        for run in runs:
            self._maybe_take_over(run)
            self._take(run)
            wants = run.expert is None and run.controller.wants_chunk(run.tick) and run.line.ready(run.tick)
            observations.append((run, run.arm.observe(render=wants or run.recorder is not None), wants))
        self._infer([(run, obs) for run, obs, wants in observations if wants])
        for run, observation, _ in observations:
            self._step(run, observation)

    def _maybe_take_over(self, run: _Run) -> None:
        if self._operator is None or run.expert is not None:
            return
        if self._operator.steps_in(run.tick, run.arm.task()):
            run.expert = Demonstrator(run.arm.world, run.seed)
            run.expert.begin()
            run.taken_over_at = run.tick
            run.deadline = run.tick + DEMONSTRATION_LIMIT_TICKS
            if run.recorder is not None:
                run.recorder.take_over(run.arm.observe(render=False).t_ns, "scripted operator")

    def _infer(self, wanting: list[tuple[_Run, Observation]]) -> None:
        if not wanting:
            return
        state = np.stack([obs.joints.position for _, obs in wanting]).astype(np.float32)
        images = {
            camera: np.stack([obs.frames[camera].image for _, obs in wanting])
            for camera in wanting[0][1].frames
        }
        result = self._session.infer(state, images)
        for index, (run, obs) in enumerate(wanting):
            chunk = ActionChunk(
                actions=result.actions[index],
                start_tick=obs.tick,
                obs_t_ns=obs.t_ns,
                version=self._session.version,
                epoch=0,
                exec_ms=0.0,
                features=result.features[index],
            )
            run.line.send(chunk, run.tick)
            self._take(run)
            run.features.append((run.tick, result.features[index]))

    def _take(self, run: _Run) -> None:
        """Hand the controller what has come over the line."""
        chunk = run.line.receive(run.tick)
        run.controller.expect(run.line.pace.mean_s)
        if chunk is not None and run.expert is None and run.controller.offer(chunk, run.tick):
            run.seams.append(run.tick)

    def _step(self, run: _Run, observation: Observation) -> None:
        target: Vector | None = None
        source = Source.POLICY
        if run.expert is not None:
            run.arm.resume()
            source, target = Source.INTERVENTION, run.expert.step()
        task = run.arm.task()
        result = run.controller.tick(observation, source, target=target, task_success=task.success)
        if run.recorder is not None:
            run.recorder.tick(observation, result.asked, source)
        run.arm.advance(result.waypoint)
        run.goals.append(run.arm.goal)
        run.tick += 1
        self._maybe_finish(run)

    def _maybe_finish(self, run: _Run) -> None:
        success = run.arm.task().success
        if success and run.deadline > run.tick + SETTLE_TICKS:
            run.success = run.taken_over_at is None
            run.deadline = run.tick + SETTLE_TICKS
        if run.tick < run.deadline:
            return
        run.done = True
        run.flags = run.controller.bank.finish()
        if run.recorder is not None:
            for flag in run.flags:
                run.recorder.flag(flag)
            # The outcome is the task's; that a person had to help is what the interventions say.
            done = "task done" if run.success else "task done by take-over"
            reason = done if success else "time is up"
            ref = run.recorder.end("success" if success else "failure", reason, run.arm.goal)
            run.episode_id = None if ref is None else ref.id


def _result(run: _Run) -> Rollout:
    return Rollout(
        seed=run.seed,
        success=run.success,
        ticks=run.tick,
        slice=run.slice,
        flags=tuple(sorted({flag.kind for flag in run.flags})),
        episode_id=run.episode_id,
        intervened=run.taken_over_at is not None,
        errors=tuple((s.tick, s.error) for s in run.controller.bank.signals if s.error is not None),
        features=tuple(run.features),
        goals=tuple(run.goals),
        seams=tuple(run.seams),
        asked=run.line.sent,
    )


def demonstrate(
    arm: LockstepArm,
    recorder: EpisodeRecorder | None,
    seed: int,
    region: Region,
    task: str,
    config: ControlConfig,
    wear: dict[str, Any] | None = None,
) -> bool:
    """One scripted demonstration through the teleoperation path; returns whether the task was done.

    The demonstrator moves the leader; the controller turns the leader's pose into waypoints and
    the servo core lets them through, exactly as for a person's hand. ``wear`` is what was done to
    the arm's motors, for the episode's provenance and name.
    """
    arm.reset(seed, region)
    controller = Controller(config, MonitorBank(MonitorConfig(), {}, DEMONSTRATION_LIMIT_TICKS))
    controller.begin()
    expert = Demonstrator(arm.world, seed)
    expert.begin()
    if recorder is not None:
        provenance = {"seed": seed, "region": region, "operator": "scripted demonstrator", "wear": wear}
        recorder.start(task, "demo", provenance, f"{'worn' if wear else 'demo'}-{region}-{seed:06d}")
    settle = 0
    for _ in range(DEMONSTRATION_LIMIT_TICKS):
        observation = arm.observe(render=recorder is not None)
        result = controller.tick(observation, Source.TELEOP, target=expert.step())
        if recorder is not None:
            recorder.tick(observation, result.asked, Source.TELEOP)
        arm.advance(result.waypoint)
        settle = settle + 1 if arm.task().success else 0
        if settle >= SETTLE_TICKS:
            break
    success = settle >= SETTLE_TICKS
    if recorder is not None:
        recorder.end("success" if success else "failure", "task done" if success else "time is up", arm.goal)
    return success
