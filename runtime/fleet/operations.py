"""What the fleet may ask for: one table of operations, and how each is done.

There is no operation that energises the arm and none that carries joint targets: those need
somebody near the robot. ``stop`` and ``estop`` over MQTT are a convenience, not a safety function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from protos.access.roles import Role
from runtime.remote import messages
from runtime.remote.errors import BadRequestError
from runtime.remote.facade import EpisodeResult, Mode, RobotFacade

Result = dict[str, object]
Arguments = Mapping[str, str]

ANY_MODE: frozenset[Mode] = frozenset(get_args(Mode))


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    ``arguments`` maps an allowed argument to whether it is required. ``urgent`` ones run at once,
    beside whatever is running; the others one after the other. ``safe`` ones only ever make the
    robot quieter: they are done even when the journal cannot be written. ``needs_free_control``
    ones are refused while somebody holds the control lease.
    """

    run: Callable[[RobotFacade, Arguments], Awaitable[Result]]
    role: Role
    modes: frozenset[Mode] = ANY_MODE
    arguments: Mapping[str, bool] | None = None
    urgent: bool = False
    safe: bool = False
    needs_free_control: bool = False

    def check(self, args: Arguments) -> None:
        """Raise BadRequestError for an unknown or missing argument."""
        allowed = self.arguments or {}
        if unknown := sorted(set(args) - set(allowed)):
            raise BadRequestError(
                f"unknown argument {unknown[0]!r}", f"allowed: {', '.join(allowed) or 'none'}"
            )
        if missing := sorted(name for name, required in allowed.items() if required and name not in args):
            raise BadRequestError(f"argument {missing[0]!r} is missing", "send it")


async def _ping(facade: RobotFacade, args: Arguments) -> Result:
    return {}


async def _status(facade: RobotFacade, args: Arguments) -> Result:
    state = await facade.state()
    return {"mode": state.mode, "reason": state.reason, "episode": state.episode, "policy": state.policy}


async def _stop(facade: RobotFacade, args: Arguments) -> Result:
    await facade.stop(messages.text(args.get("reason", ""), "reason") or "fleet stop")
    return {}


async def _estop(facade: RobotFacade, args: Arguments) -> Result:
    await facade.estop(messages.text(args.get("reason", ""), "reason") or "fleet e-stop")
    return {}


async def _hold(facade: RobotFacade, args: Arguments) -> Result:
    await facade.hold(messages.text(args.get("reason", ""), "reason") or "fleet hold")
    return {}


async def _start_policy(facade: RobotFacade, args: Arguments) -> Result:
    await facade.set_mode("policy")
    return {}


async def _set_policy(facade: RobotFacade, args: Arguments) -> Result:
    bundle = messages.text(args["bundle"], "bundle", limit=messages.MAX_PATH, required=True)
    backend = messages.text(args.get("backend", ""), "backend", limit=32)
    return {"version": await facade.set_policy(bundle, backend)}


async def _start_episode(facade: RobotFacade, args: Arguments) -> Result:
    return _episode(await facade.start_episode(messages.text(args["task"], "task", required=True)))


async def _end_episode(facade: RobotFacade, args: Arguments) -> Result:
    outcome = messages.episode_outcome(args["outcome"])
    return _episode(await facade.end_episode(outcome, messages.text(args.get("reason", ""), "reason")))


def _episode(result: EpisodeResult) -> Result:
    return {
        "episode": result.id,
        "frames": result.frames,
        "end_ms": result.end_ms,
        "flags": list(result.flags),
    }


_REASON = {"reason": False}
_ENABLED: frozenset[Mode] = frozenset({"ready", "teleop", "policy", "hold"})

OPERATIONS: Mapping[str, Operation] = {
    "ping": Operation(_ping, Role.LOOK, urgent=True),
    "status": Operation(_status, Role.LOOK, urgent=True),
    "stop": Operation(_stop, Role.LOOK, arguments=_REASON, urgent=True, safe=True),
    "estop": Operation(_estop, Role.LOOK, arguments=_REASON, urgent=True, safe=True),
    "hold": Operation(_hold, Role.LOOK, arguments=_REASON, urgent=True, safe=True),
    "start_policy": Operation(
        _start_policy, Role.DRIVE, modes=frozenset({"ready", "hold"}), needs_free_control=True
    ),
    "set_policy": Operation(
        _set_policy,
        Role.DEPLOY,
        modes=frozenset({"off", "ready", "policy", "hold"}),
        arguments={"bundle": True, "backend": False},
        needs_free_control=True,
    ),
    "start_episode": Operation(
        _start_episode, Role.DRIVE, modes=_ENABLED, arguments={"task": True}, needs_free_control=True
    ),
    "end_episode": Operation(
        _end_episode, Role.DRIVE, arguments={"outcome": True, "reason": False}, needs_free_control=True
    ),
}
