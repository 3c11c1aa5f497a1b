"""The udev rule for the arms' adapters: is it there, and how to get it there."""

from __future__ import annotations

from pathlib import Path

from tools.checking import Finding, ok, warning

RULE = Path(__file__).resolve().parent.parent / "systemd" / "99-ratchet.rules"
_NAME = RULE.name
_PLACES = (Path("/etc/udev/rules.d"), Path("/usr/lib/udev/rules.d"), Path("/lib/udev/rules.d"))
_RELOAD = "sudo udevadm control --reload && sudo udevadm trigger"


def udev_finding(places: tuple[Path, ...] = _PLACES) -> Finding:
    """Whether the rule that ships with this version is installed."""
    what = "udev rule"
    install = f"sudo cp {RULE} {_PLACES[0]}/ && {_RELOAD}"
    if not any(place.parent.is_dir() for place in places):
        return warning(what, "there is no udev here", "give the port's device node its group by other means")
    for place in places:
        installed = place / _NAME
        if installed.is_file():
            if installed.read_bytes() == RULE.read_bytes():
                return ok(what, str(installed))
            return warning(what, f"{installed} is of another version", install)
    return warning(
        what, "not installed: adapters may lack permission, a lasting name and their 1 ms latency", install
    )


def write_rule(path: Path) -> str:
    """Write the rule to ``path``; what to do next, in one line."""
    path.write_bytes(RULE.read_bytes())
    if path.resolve().parent in _PLACES:
        return f"wrote {path}; now: {_RELOAD}"
    return f"wrote {path}; now: sudo cp {path} {_PLACES[0]}/{_NAME} && {_RELOAD}"
