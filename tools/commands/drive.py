"""`ratchet teleop`, `run`, `status`: drive a running robot service, or look at it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.client import RobotClient
from tools.console import say, show_json
from tools.emergency_keys import emergency_keys
from tools.options import FiniteRange
from tools.robot_door import Door, leave, left_mode, robot_options, run_until_interrupted

_LOOK_HZ = 5.0
_LINE_EVERY_S = 10.0


@click.command(epilog="\b\nExamples:\n  ratchet teleop\n  ratchet teleop --dir out/sim --seconds 30\n")
@click.option("--seconds", type=FiniteRange(min=0.1), help="End by itself [default: at Ctrl-C].")
@robot_options
def teleop(door: Door, seconds: float | None) -> None:
    """Let the leader arm drive the follower until Ctrl-C, then let it down. Space or e: emergency stop."""
    run_until_interrupted(lambda interrupted: _drive(door, "teleop", seconds, None, "", interrupted))


@click.command(
    epilog="\b\nExamples:\n  ratchet run\n  ratchet run --dir out/sim --bundle out/bundle --seconds 20\n"
)
@click.option("--bundle", help="Serve this bundle first: its directory, or a version that is loaded.")
@click.option("--backend", default="", help="onnx, onnx-int8, torch or compile [default: the server's].")
@click.option("--seconds", type=FiniteRange(min=0.1), help="End by itself [default: at Ctrl-C].")
@robot_options
def run(door: Door, bundle: str | None, backend: str, seconds: float | None) -> None:
    """Let the policy drive the arm until Ctrl-C, then let it down. Space bar or e: emergency stop."""
    if bundle is not None and Path(bundle).is_dir():
        bundle = str(Path(bundle).resolve())
    run_until_interrupted(lambda interrupted: _drive(door, "policy", seconds, bundle, backend, interrupted))


@click.command(epilog="\b\nExamples:\n  ratchet status --json\n  ratchet status --dir out/sim --watch\n")
@click.option("--watch", is_flag=True, help="Go on showing it until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one object a line.")
@robot_options
def status(door: Door, watch: bool, as_json: bool) -> None:
    """Show the robot's mode, joints, loop figures and flags."""
    if watch:
        run_until_interrupted(lambda interrupted: _watch_status(door, as_json, interrupted))
    else:
        asyncio.run(_status(door, as_json))


async def _drive(
    door: Door, mode: str, seconds: float | None, bundle: str | None, backend: str, interrupted: asyncio.Event
) -> None:
    async with door.connect() as robot, robot.control(f"ratchet {mode}") as control:
        if bundle is not None:
            say(f"serving {await control.set_policy(bundle, backend)}")
        await control.enable()
        try:
            await control.set_mode(mode)
            with emergency_keys(door, robot) as keys:
                say(f"{mode} drives the arm; {keys}Ctrl-C lets it down")
                await _until_done(robot, mode, seconds, interrupted)
        finally:
            await leave(robot, control, mode, f"ratchet {mode} ended")


async def _until_done(
    robot: RobotClient, mode: str, seconds: float | None, interrupted: asyncio.Event
) -> None:
    """Watch the arm until it is time to end. Raises UsageError when it leaves the mode by itself."""
    began = said = time.monotonic()
    flags_until_ns = 0
    async with contextlib.aclosing(robot.telemetry(_LOOK_HZ)) as telemetry:
        async for sample in telemetry:
            state, now = sample.state, time.monotonic()
            if state.mode != mode:
                raise left_mode(mode, state.mode, state.reason)
            for flag in state.recent_flags:
                if flag.start_ns > flags_until_ns:
                    flags_until_ns = flag.start_ns
                    say(f"flag {flag.kind} score {flag.score:.2f}")
            if now - said >= _LINE_EVERY_S:
                said = now
                say(_line(state))
            if interrupted.is_set() or (seconds is not None and now - began >= seconds):
                if mode == "teleop" and state.loop.leader_hz:
                    say(leader_line(state.loop))
                return


async def _status(door: Door, as_json: bool) -> None:
    async with door.connect() as robot:
        state = await robot.state()
    if as_json:
        show_json(_plain(state))
    else:
        Console(highlight=False).print(_picture(state))


async def _watch_status(door: Door, as_json: bool, interrupted: asyncio.Event) -> None:
    async with door.connect() as robot:
        live = None if as_json else Live(console=Console(highlight=False), auto_refresh=False)
        async with contextlib.aclosing(robot.telemetry(_LOOK_HZ)) as telemetry:
            with live or contextlib.nullcontext():
                async for sample in telemetry:
                    if live is None:
                        click.echo(json.dumps(_plain(sample.state)))
                    else:
                        live.update(_picture(sample.state), refresh=True)
                    if interrupted.is_set():
                        return


def _plain(state: pb.RobotState) -> dict[str, object]:
    return MessageToDict(state, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _line(state: pb.RobotState) -> str:
    loop = state.loop
    parts = [
        f"period p99 {loop.period_ms_p99:.1f} ms",
        f"{loop.missed} of {loop.ticks} ticks missed",
        f"{loop.bus_lost} replies lost",
    ]
    if state.mode == "teleop" and loop.leader_hz:
        parts.append(leader_line(loop))
    if state.policy:
        parts.append(f"policy {state.policy}")
    return f"{state.mode}: {', '.join(parts)}"


def leader_line(loop: pb.LoopStats) -> str:
    """How the leader arm is followed, as a person reads it."""
    return (
        f"leader to follower {loop.leader_hz:.0f} Hz, "
        f"latency p50 {loop.leader_latency_ms_p50:.1f} ms p99 {loop.leader_latency_ms_p99:.1f} ms"
    )


def _picture(state: pb.RobotState) -> Group:
    """Mode, joints and figures as a person reads them."""
    loop = state.loop
    period = f"p50 {loop.period_ms_p50:.2f}  p99 {loop.period_ms_p99:.2f}  max {loop.period_ms_max:.2f} ms"
    head = Table.grid(padding=(0, 2))
    rows = {
        "robot": state.robot,
        "mode": f"{state.mode} ({state.reason})",
        "control": state.lease_holder or "free",
        "episode": state.episode or "none",
        "policy": state.policy or "none",
        "period": period,
        "ticks": f"{loop.ticks}, {loop.missed} missed, lateness p99 {loop.lateness_ms_p99:.2f} ms",
        "inference": f"p50 {loop.inference_ms_p50:.0f}  p99 {loop.inference_ms_p99:.0f} ms",
        "bus": f"{loop.bus_cycles} cycles, {loop.bus_lost} replies lost",
        **({"leader": leader_line(loop)} if loop.leader_hz else {}),
        "flags": ", ".join(f"{flag.kind} ({flag.score:.1f})" for flag in state.recent_flags[-5:]) or "none",
    }
    for name, value in rows.items():
        head.add_row(name, value)
    joints = Table(box=None, pad_edge=False)
    columns = ("joint", "position rad", "goal rad", "velocity rad/s", "effort", "°C", "V", "error")
    for name in (*columns, "lost", "again"):
        joints.add_column(name, justify="left" if name == "joint" else "right", no_wrap=name == "joint")
    for i in range(len(state.position)):
        joints.add_row(
            state.joints[i],
            f"{state.position[i]:.3f}",
            f"{state.goal[i]:.3f}" if len(state.goal) else "",
            f"{state.velocity[i]:.2f}",
            f"{state.effort[i]:.2f}",
            f"{state.temperature[i]:.0f}",
            f"{state.voltage[i]:.1f}",
            f"{state.hardware_error[i]:#04x}" if state.hardware_error[i] else "",
            str(state.replies[i].lost) if state.replies else "",
            str(state.replies[i].retries) if state.replies else "",
        )
    return Group(head, "", joints)
