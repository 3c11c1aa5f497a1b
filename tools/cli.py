"""The `ratchet` command: verbs a LeRobot user guesses, each in its own module, loaded when used."""

from __future__ import annotations

import difflib
import errno
import importlib
import logging
import sys
from typing import NoReturn

import click

from tools.errors import user_errors

# verb -> (module, its click command, what `ratchet --help` says)
VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("tools.commands.demo", "demo", "Show the whole loop on the simulated bench."),
    "init": ("tools.commands.init", "init", "Write a configuration file for a robot or the bench."),
    "doctor": (
        "tools.commands.doctor",
        "doctor",
        "Check ports, motors, cameras, disk; say what to do.",
    ),
    "up": ("tools.commands.up", "up", "Run the robot service (with --sim: on the simulated bench)."),
    "calibrate": ("tools.commands.calibrate", "calibrate", "Calibrate an arm, or check a calibration file."),
    "teleop": ("tools.commands.drive", "teleop", "Let the leader arm drive the follower."),
    "record": ("tools.commands.record", "record", "Record episodes while teleoperating."),
    "replay": ("tools.commands.replay", "replay", "Play a recorded episode's actions on the arm."),
    "run": ("tools.commands.drive", "run", "Let the policy drive the arm."),
    "stop": ("tools.commands.stop", "stop", "Stop the arm: hold, lower, release (--emergency: e-stop)."),
    "status": ("tools.commands.drive", "status", "Show the robot's state and loop figures."),
    "episodes": (
        "tools.commands.episodes",
        "episodes",
        "List, show, verify, query, import episodes.",
    ),
    "train": ("tools.commands.train", "train", "Train a policy from recorded episodes."),
    "evaluate": (
        "tools.commands.evaluate",
        "evaluate",
        "Judge a policy: in simulation, or --offline on episodes.",
    ),
    "model": ("tools.commands.model", "model", "List, show, verify, import, promote, roll back bundles."),
    "serve": ("tools.commands.serve", "serve", "Serve a bundle over gRPC."),
    "learn": ("tools.commands.learn", "learn", "Run the learner process, or one round of it."),
    "fleet": ("tools.commands.fleet", "fleet", "Send signed commands to robots over MQTT, and watch them."),
    "jobs": ("tools.commands.jobs", "jobs", "Submit training jobs and bring their bundles back."),
    "bench": ("tools.commands.bench", "bench", "Measure bus, loop, e-stop, contact and faults."),
    "keys": ("tools.commands.keys", "keys", "Signing key, authority, certificates, tokens: who may do what."),
}


class LazyVerbs(click.Group):
    """Loads a verb's module only when that verb is used: `ratchet --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"no command '{name}'{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ratchet", message="ratchet %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log what the parts do.")
def cli(verbose: bool) -> None:
    """A runtime for low-cost robot arms that gets better each time it fails."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        sys.exit(cli(prog_name="ratchet", standalone_mode=False) or 0)
    except SystemExit:
        raise
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(f"{error.format_message()}{f' (see `{command} --help`)' if command else ''}", 2)
    except user_errors() as error:
        _fail(str(error), 2)
    except OSError as error:
        # A path that is a file, a folder, read-only or full is the user's to mend; the rest are bugs.
        if error.errno not in _USERS_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{(error.strerror or str(error)).lower()}; give another path, or make room", 2)


_USERS_ERRNOS = {errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTEMPTY, errno.ENAMETOOLONG}


def _fail(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"ratchet: {' '.join(line.split())}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
