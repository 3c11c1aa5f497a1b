"""The bench in real time: ``python -m hal.bench.process --dir RUNDIR [--seed N]``.

One loop steps the world at 240 Hz on absolute deadlines, moves the leader at 30 Hz while somebody
demonstrates, and renders both cameras at 30 Hz. Around it, in threads of their own: the MJPEG
server, the control socket; in a process of their own, because motors answer in time whatever is
being drawn: the two emulated buses. Nothing but the loop touches the world.

When it is ready the bench writes ``bench.json`` (a ``BenchInfo``) into its run directory.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hal.bench.backends import FollowerBackend, LeaderBackend
from hal.bench.breakage import Breakage, known_arm
from hal.bench.control import Arguments, BenchInfo, ControlServer
from hal.bench.direction import Direction
from hal.bench.emulator import EmulatorConfig
from hal.bench.emulator_process import EmulatorProcess
from hal.bench.launch import INFO_FILE
from hal.bench.mjpeg import Feed, MjpegServer
from hal.bench.model import CAMERAS
from hal.bench.prerendered import Prerendered
from hal.bench.world import World, WorldConfig
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.errors import BenchError, HalError

log = logging.getLogger(__name__)


STEP_NS = 1_000_000_000 // 240
STEPS_PER_TICK = 8
_LATE_LIMIT_NS = 50_000_000  # beyond this the loop skips instead of catching up
_CHECK_STEPS = 60
_SWITCH_S = 0.0005


class BenchConfig(BaseModel):
    """What to run: directory for sockets and ports, first scene, image size, bus speed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: Path
    seed: int = Field(default=0, ge=0)
    width: int = Field(default=96, ge=16, le=1280)
    height: int = Field(default=96, ge=16, le=960)
    baud: int = 1_000_000
    prerendered: bool = Field(default=False, description="the cameras show a scene that was drawn before")
    parent_pid: int | None = Field(default=None, description="end when this is no longer the parent")


class Bench:
    """World, buses, cameras and control socket of one run directory, driven by ``run``."""

    def __init__(self, config: BenchConfig) -> None:
        self.config = config
        config.dir.mkdir(parents=True, exist_ok=True)
        (config.dir / INFO_FILE).unlink(missing_ok=True)
        self._world = World(WorldConfig(width=config.width, height=config.height))
        self._world.reset(config.seed)
        self._follower = FollowerBackend(self._world)
        self._leader = LeaderBackend(self._world.position)
        self._buses = EmulatorProcess(
            {
                "follower": (KOCH_FOLLOWER, self._bus_config("follower")),
                "leader": (KOCH_LEADER, self._bus_config("leader")),
            }
        )
        self._feeds = {name: Feed(name, noise_seed=i) for i, name in enumerate(CAMERAS)}
        self._mjpeg = MjpegServer(list(self._feeds.values()))
        self._control = ControlServer(config.dir / "bench.sock")
        self._direction = Direction(self._world, self._follower, self._leader)
        self._breakage = Breakage(self._world, self._buses, self._feeds)
        self._scenes: Prerendered | None = None
        self._steps = self._skipped = 0
        self._ending = False

    def run(self) -> None:
        """Serve until ``shutdown``, SIGTERM, or the parent's death."""
        self._buses.start({"follower": self._follower, "leader": self._leader})
        self._mjpeg.start()
        try:
            if self.config.prerendered:
                self._scenes = Prerendered(self._world, self.config.dir / "scenes")
            else:
                for name in CAMERAS:
                    self._world.render(name)  # the context and the first picture cost a second
            self._announce()
            log.info("bench_ready dir=%s pid=%d", self.config.dir, os.getpid())
            self._loop()
        finally:
            self._close()

    def end(self) -> None:
        """Leave the loop after its present step."""
        self._ending = True

    def _loop(self) -> None:
        deadline = time.monotonic_ns() + STEP_NS
        while not self._ending:
            wait_ns = deadline - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns * 1e-9)
            elif wait_ns < -_LATE_LIMIT_NS:
                missed = -wait_ns // STEP_NS
                self._skipped += missed
                deadline += missed * STEP_NS
            self._step()
            deadline += STEP_NS

    def _step(self) -> None:
        if self._steps % STEPS_PER_TICK == 0:
            self._direction.guide(STEPS_PER_TICK)
        self._buses.receive("leader", self._leader)
        self._buses.receive("follower", self._follower)
        self._leader.step()
        self._follower.apply()
        self._control.serve_pending(self._handle)
        self._world.step()
        self._follower.publish()
        self._buses.exchange("follower", self._follower)
        self._buses.exchange("leader", self._leader)
        # The cameras take turns, half a frame apart, so that no step renders both.
        phase = self._steps % STEPS_PER_TICK
        if phase in (0, STEPS_PER_TICK // 2):
            name = CAMERAS[0 if phase == 0 else 1]
            self._take_picture(name)
        elif phase == 2:
            self._breakage.report_errors()
        self._steps += 1
        if self._steps % _CHECK_STEPS == 0:
            self._check_on_others()

    def _take_picture(self, camera: str) -> None:
        if self._scenes is None:
            self._feeds[camera].publish(self._world.render(camera), time.monotonic_ns())
        else:
            self._feeds[camera].replay(self._scenes.next(camera), time.monotonic_ns())

    def _check_on_others(self) -> None:
        """End when the parent is gone, or a bus."""
        parent = self.config.parent_pid
        if parent is not None and os.getppid() != parent:
            log.info("bench_parent_gone pid=%d", parent)
            self._ending = True
        if not self._buses.alive:
            raise BenchError("the process of the emulated buses died", "restart the bench")

    # --- control socket -----------------------------------------------------------------------------

    def _handle(self, request: Arguments) -> Arguments:
        arguments = {key: value for key, value in request.items() if key != "op"}
        operations: dict[str, Callable[..., Arguments | None]] = {
            "reset": self._reset,
            "demonstrate": self._direction.demonstrate,
            "stop_demonstration": self._direction.stop_demonstration,
            "task": self._direction.task,
            "motor_fault": self._breakage.motor,
            "reboot_motor": self._breakage.reboot,
            "bus_fault": self._breakage.bus,
            "camera_fault": self._breakage.camera,
            "obstacle": self._breakage.obstacle,
            "judge_reset": lambda arm: self._buses.judge_reset(known_arm(arm)),
            "judge": lambda arm: self._buses.judge(known_arm(arm)).model_dump(),
            "goal_log": lambda arm: self._buses.goal_log(known_arm(arm)).to_wire(),
            "info": self._info_reply,
            "shutdown": self._shutdown,
        }
        operation = operations.get(request["op"])
        if operation is None:
            raise BenchError(f"unknown op {request['op']!r}", "see BenchClient for what there is")
        return operation(**arguments) or {}

    def _reset(self, seed: int, region: str = "full") -> None:
        """A new scene, once it is known what had been energised when it was asked for: a released arm goes
        home with it."""
        self._buses.receive("follower", self._follower)
        self._follower.apply()
        self._direction.reset(seed, region)

    def _shutdown(self) -> None:
        self._ending = True

    def _info_reply(self) -> Arguments:
        return self._info().model_dump()

    # --- life cycle ---------------------------------------------------------------------------------

    def _bus_config(self, arm: str) -> EmulatorConfig:
        return EmulatorConfig(
            baud=self.config.baud, link=self.config.dir / f"tty-{arm}", seed=self.config.seed
        )

    def _info(self) -> BenchInfo:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return BenchInfo(
            pid=os.getpid(),
            follower_port=self._buses.port("follower"),
            leader_port=self._buses.port("leader"),
            baud=self.config.baud,
            cameras=self._mjpeg.urls,
            control=str(self._control.path),
            width=self.config.width,
            height=self.config.height,
            steps=self._steps,
            skipped=self._skipped,
            cpu_s=usage.ru_utime + usage.ru_stime,
        )

    def _announce(self) -> None:
        """Write bench.json in one piece."""
        partial = self.config.dir / f".{INFO_FILE}.partial"
        partial.write_text(self._info().model_dump_json(indent=1))
        partial.replace(self.config.dir / INFO_FILE)

    def _close(self) -> None:
        self._control.close()
        for feed in self._feeds.values():
            feed.mode = "gone"
        self._mjpeg.stop()
        self._buses.stop()
        (self.config.dir / INFO_FILE).unlink(missing_ok=True)
        log.info("bench_ended steps=%d skipped=%d", self._steps, self._skipped)


def main(arguments: list[str] | None = None) -> None:
    """Command line of the bench process."""
    parser = argparse.ArgumentParser(description="the simulated bench in real time")
    parser.add_argument("--dir", type=Path, required=True, help="run directory: ports, socket, bench.json")
    parser.add_argument("--seed", type=int, default=0, help="first scene")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--baud", type=int, default=1_000_000)
    parser.add_argument("--prerendered", action="store_true", help="cameras show a scene drawn before")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this process is gone")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # The loop must not wait the default 5 ms for the interpreter while a picture is being sent.
    sys.setswitchinterval(_SWITCH_S)
    try:
        bench = Bench(BenchConfig(**vars(options)))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: bench.end())
        bench.run()
    except (HalError, ValidationError) as error:
        log.error("bench_failed reason=%s", error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
