// What is open, and everything the person does: list, transport, keys, address.

import { $, ask, make, part, seconds } from "./api.js";
import { List } from "./list.js";
import { Pane } from "./pane.js";
import { Player, SPEEDS } from "./player.js";

const shown = { a: null, b: null };
const player = new Player(tell);
let comparing = false; // the next click in the list opens beside
let turn = 0;

const list = new List((id, beside) => {
  const second = (beside || comparing) && shown.a !== null && shown.a.data.id !== id;
  setComparing(false);
  open(second ? shown.a.data.id : id, second ? id : shown.b?.data.id ?? "");
});

async function open(a, b) {
  const mine = (turn += 1);
  player.play(false);
  try {
    if (b === a) b = "";
    const wanted = await Promise.all([a, b].map((id) => (id ? ask(`episode/${part(id)}`) : null)));
    if (mine !== turn) return;
    put("a", wanted[0]);
    put("b", wanted[1]);
  } catch (error) {
    if (mine !== turn) return;
    $("empty").hidden = false;
    $("empty").replaceChildren(make("p", { className: "error" }, error.message));
    return;
  }
  const panes = [shown.a, shown.b].filter(Boolean);
  $("empty").hidden = panes.length > 0;
  $("transport").hidden = !panes.length;
  document.body.classList.toggle("comparing", panes.length > 1);
  $("align-box").hidden = $("uncompare").hidden = panes.length < 2;
  $("panes").replaceChildren(...panes.map((pane) => pane.element));
  $("lines").replaceChildren(...panes.map((pane) => pane.timeline.canvas));
  player.time = 0;
  offerAlignments();
  align($("align").value);
  list.mark(a, b);
  remember();
  await Promise.all(panes.map((pane) => pane.ready));
  player.redraw();
}

function put(side, data) {
  if (shown[side]?.data.id === data?.id && data) return;
  shown[side]?.close();
  shown[side] = data ? new Pane(side, data, player) : null;
}

// ---- aligning two episodes: at their start, or at the first flag of a kind both have

function offerAlignments() {
  const choices = [["start", "start"]];
  if (shown.a && shown.b) {
    const kinds = (pane) => new Set(pane.data.flags.map((flag) => flag.kind));
    const other = kinds(shown.b);
    if (kinds(shown.a).size && other.size) choices.push(["flag", "first flag"]);
    for (const kind of kinds(shown.a)) if (other.has(kind)) choices.push([`kind:${kind}`, `first ${kind}`]);
    choices.push(["end", "end"]);
  }
  $("align").replaceChildren(...choices.map(([value, label]) => make("option", { value }, label)));
}

function align(how) {
  const panes = [shown.a, shown.b].filter(Boolean);
  for (const pane of panes) {
    const flags = pane.data.flags.filter((flag) => how === "flag" || `kind:${flag.kind}` === how);
    pane.anchor = how === "end" ? pane.data.seconds : flags.length && how !== "start" ? flags[0].start : 0;
  }
  player.time = 0;
  player.setPanes(panes);
}

// ---- the transport

function tell(now) {
  const first = now.panes[0];
  $("play").textContent = now.playing ? "❚❚" : "▶";
  const zero = now.panes.some((pane) => pane.anchor) ? `${now.time >= 0 ? "+" : ""}${seconds(now.time)}` : seconds(now.time);
  $("time").textContent = first ? `${zero} / ${seconds(now.span[1])}` : "";
  $("speed").value = String(now.speed);
  const flagged = now.panes.some((pane) => pane.data.flags.length);
  $("flag-back").disabled = $("flag-forth").disabled = !flagged;
}

function setComparing(on) {
  comparing = on;
  document.body.classList.toggle("choosing", on);
}

function remember() {
  const held = new URLSearchParams();
  if (list.where) held.set("where", list.where);
  if (shown.a) held.set("a", shown.a.data.id);
  if (shown.b) held.set("b", shown.b.data.id);
  history.replaceState(null, "", `#${held}`);
}

const closeSecond = () => shown.b && open(shown.a.data.id, "");
const neighbour = (step) => {
  const id = list.neighbour(shown.a?.data.id, step);
  if (id && id !== shown.a?.data.id) {
    open(id, shown.b?.data.id ?? "");
    document.querySelector(`[data-id="${CSS.escape(id)}"]`)?.scrollIntoView({ block: "nearest" });
  }
};

const KEYS = {
  " ": () => player.play(), ArrowLeft: () => player.step(-1), ArrowRight: () => player.step(1),
  "[": () => player.flag(-1), "]": () => player.flag(1), "-": () => player.faster(-1), "+": () => player.faster(1), "=": () => player.faster(1),
  Home: () => player.seek(player.span[0]), End: () => player.seek(player.span[1]), j: () => neighbour(1), k: () => neighbour(-1),
  c: () => setComparing(!comparing), "/": () => $("where").focus(), "?": () => $("help").showModal(),
  Escape: () => (comparing ? setComparing(false) : closeSecond()),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

const click = (id, what) => $(id).addEventListener("click", (event) => { event.currentTarget.blur(); what(); });
click("play", () => player.play());
click("back", () => player.step(-1));
click("forth", () => player.step(1));
click("flag-back", () => player.flag(-1));
click("flag-forth", () => player.flag(1));
click("keys", () => $("help").showModal());
click("uncompare", closeSecond);
click("theme", () => {
  const dark = document.documentElement.dataset.theme === "dark";
  setTheme(dark ? "light" : "dark");
  localStorage.setItem("theme", dark ? "light" : "dark");
});
$("speed").append(...SPEEDS.map((speed) => make("option", { value: String(speed) }, `${speed}×`)));
$("speed").addEventListener("change", (event) => { player.speed = Number(event.target.value); event.target.blur(); });
$("align").addEventListener("change", (event) => { align(event.target.value); event.target.blur(); });

/** "dark" or "light"; nothing means what the system says. */
function setTheme(name) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = name || system;
  for (const pane of [shown.a, shown.b]) pane?.render();
  player.redraw();
}

async function begin() {
  setTheme(localStorage.getItem("theme"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(localStorage.getItem("theme")));
  const held = new URLSearchParams(location.hash.slice(1));
  const store = await ask("store");
  $("store").textContent = store.root;
  $("where").title = `columns: ${store.columns.episodes.join(", ")}`;
  if (!store.episodes) {
    $("empty").replaceChildren(make("p", {}, "This store has no episodes yet."), make("p", { className: "dim" }, "Record some with ", make("code", {}, "ratchet record"), " or bring a dataset in with ", make("code", {}, "ratchet episodes import"), ", then reload."));
    return;
  }
  list.chips(store.flag_kinds);
  await list.apply(held.get("where") ?? "");
  const a = held.get("a") ?? list.rows[0]?.id;
  if (a) await open(a, held.get("b") ?? "");
  else $("empty").replaceChildren(make("p", {}, "No episode fits this condition."));
}

// For tests and for whoever looks at the console.
window.viewer = { player, shown, list };
begin().catch((error) => $("empty").replaceChildren(make("p", { className: "error" }, error.message)));
