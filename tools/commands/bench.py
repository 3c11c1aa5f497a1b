"""`ratchet bench`: figures of this machine, each beside the limit or the peer it is judged by."""

from __future__ import annotations

import difflib
import importlib

import click

# name -> what `ratchet bench --help` says; tools/bench/<name>.py has the command
BENCHES: dict[str, str] = {
    "inference": "One chunk of the published ACT: eager, compiled, ONNX float32, ONNX int8.",
    "quantise": "What int8 costs: held-out error on real recordings, success in closed loop.",
    "bus": "One arm's bus: cycle times over wire time, CPU against the SDK's.",
    "loop": "The whole robot side under four loads: lateness, missed ticks, photon to goal.",
    "estop": "How soon an emergency stop reaches the motors, from every door.",
    "contact": "How soon a blocked arm stops, and how often one stops for nothing.",
    "crash": "Kill the recorder, cut the power at every write: what is left of the episodes.",
    "backbones": "ACT over EfficientNet-Lite0 and over ResNet-18, two 640x480 cameras: int8, float32.",
    "learning": "Which image backbone learns the demo's task better, on the same seeds.",
    "recorder": "Four cameras into the store on two cores: drops, bytes, PSNR, end of episode.",
    "loader": "Random training samples a second, beside the decoder alone and beside LeRobot.",
    "convert": "LeRobot v2.1 to v3.0, beside LeRobot's own converter.",
    "server": "Many arms on one policy server; what serving adds to bare inference, beside pickled frames.",
    "hostile": "A hundred thousand malformed requests to a policy server, and one honest client.",
    "swap": "Weights that change under a client at 30 Hz: failed requests, gaps, memory, refusals.",
    "train": "A training step of the published ACT, beside LeRobot's: time, loss, gradients.",
    "latency": "Success and smoothness with a policy far away, beside a naive client.",
    "roundtrip": "A full-size policy in every tick of a whole robot: round trips, missed ticks.",
    "faults": "Break everything in turn: what the arm does, what comes back by itself.",
}


class LazyBenches(click.Group):
    """Loads a benchmark only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHES:
            return None
        command = importlib.import_module(f"tools.bench.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(BENCHES.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in BENCHES and not name.startswith("-"):
            near = difflib.get_close_matches(name, BENCHES, n=1)
            ctx.fail(f"no benchmark '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyBenches, epilog="\b\nExamples:\n  ratchet bench bus --json\n  ratchet bench loop --seconds 60\n"
)
def bench() -> None:
    """Measure this machine. Every figure in the documents was printed by one of these."""
