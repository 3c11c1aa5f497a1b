"""``python -m policy_server.quietly MODULE ARGUMENT...``: import a module behind the rest, then run it.

An engine process imports for half a second of processor time before it is told anything. At its usual
priority it took a core from the inference that goes on meanwhile, and of all of a load slowed that most.
Whatever is imported here, at the top, is not imported behind anything: keep it short.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading

#: Of what gets ready to serve while something else serves.
NICE = 19


def give_way() -> None:
    """Leave the processor to others, as far as this thread is concerned; most systems let none come back."""
    os.setpriority(os.PRIO_PROCESS, 0, NICE)


def import_behind(module: str) -> None:
    """Import it in a thread that gives way, and ends then. Raises nothing: its next import does."""

    def work() -> None:
        give_way()
        importlib.import_module(module)

    thread = threading.Thread(target=work, name="importer")
    thread.start()
    thread.join()


def main(argv: list[str]) -> int:
    """The exit status of the module's own ``main``. Raises what importing it raises."""
    module, *arguments = argv
    import_behind(module)
    status: int = importlib.import_module(module).main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
