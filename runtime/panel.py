"""The page for the person beside the robot: its state, and one large button that stops it.

The button's request is an e-stop, which needs no lease and no login: whoever reaches loopback may stop the
arm. A page of somebody else's in the same browser may not: the request must carry a header that other
origins cannot send unasked, name this server as its host, and come from no other origin. The worst such
a page could achieve is a stop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from runtime.remote.facade import RobotSnapshot

HEADER = "x-ratchet"
HEADER_VALUE = "estop"
SECURITY = (
    "Content-Security-Policy: default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
)


def headers_of(head: bytes) -> dict[str, str] | None:
    """Header fields by lower-case name; None when a line is none or a name comes twice."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or name.lower() in fields:
            return None
        fields[name.lower()] = value.strip()
    return fields


def own_host(fields: Mapping[str, str], port: int) -> bool:
    """The request names this server by a loopback name, so no foreign name was pointed at it."""
    return fields.get("host", "").lower() in {
        f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")
    }


def refusal(fields: Mapping[str, str], port: int) -> str | None:
    """Why a POST /estop is not taken, in one line; None when it is."""
    if not own_host(fields, port):
        return f"the Host must be 127.0.0.1:{port} or localhost:{port}\n"
    if fields.get(HEADER) != HEADER_VALUE:
        return f"send the header {HEADER}: {HEADER_VALUE}\n"
    origin = fields.get("origin")
    if origin is not None and origin.lower() != f"http://{fields['host'].lower()}":
        return "stopping is not for other origins\n"
    if fields.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "stopping is not for other origins\n"
    return None


def state_json(snapshot: RobotSnapshot, *, well: bool) -> str:
    """What the page shows."""
    loop = snapshot.loop
    return json.dumps(
        {
            "robot": snapshot.robot,
            "mode": snapshot.mode,
            "reason": snapshot.reason,
            "episode": snapshot.episode,
            "policy": snapshot.policy,
            "ticks": loop.ticks,
            "missed": loop.missed,
            "well": well,
        }
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Ratchet</title>
<style>
body { font: 16px system-ui, sans-serif; margin: 2rem auto; max-width: 32rem; padding: 0 1rem }
button { width: 100%; padding: 2.5rem 0; font-size: 3rem; font-weight: 700; color: #fff; background: #c40d0d;
  border: 0; border-radius: 1rem; cursor: pointer }
button:active { background: #800 } #mode { font-size: 2rem } .off { color: #777 }
</style>
<h1 id="robot">Ratchet</h1>
<p><span id="mode" class="off">no answer</span><br><span id="reason"></span></p>
<button id="stop" accesskey="s">STOP</button>
<p id="said" role="status"></p>
<p id="more" class="off"></p>
<script>
const show = (id, text) => { document.getElementById(id).textContent = text };
const stop = () => {
  show("said", "stopping");
  fetch("/estop", { method: "POST", headers: { "x-ratchet": "estop" } })
    .then(answer => answer.text()).then(text => show("said", text))
    .catch(() => show("said", "NOT STOPPED: the robot does not answer; cut its power"));
};
document.getElementById("stop").addEventListener("pointerdown", stop);
document.addEventListener("keydown", event => {
  if (["e", " ", "Enter"].includes(event.key)) { event.preventDefault(); stop() }
});
const look = () => fetch("/state").then(answer => answer.json()).then(state => {
  show("robot", state.robot); show("mode", state.mode); show("reason", state.reason);
  document.getElementById("mode").className = state.well ? "" : "off";
  show("more", `${state.ticks} ticks, ${state.missed} missed` + (state.well ? "" : "; see /healthz"));
}).catch(() => show("mode", "no answer")).finally(() => setTimeout(look, 500));
look();
</script>
</html>
"""
