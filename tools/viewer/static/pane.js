// One episode on the page: heading, cameras, flags, charts.

import { ask, duration, flagColor, flagName, make, part, seconds } from "./api.js";
import { Camera } from "./camera.js";
import { Chart } from "./chart.js";
import { Timeline } from "./timeline.js";

const TICKED = ["observation.state", "action", "action.asked"];
const OVERLAID = [
  ["observation.effort", "effort"], ["observation.temperature", "temperature"], ["tick.lateness_ms", "lateness"],
];
const MAX_CHARTS = 40;

export class Pane {
  constructor(id, data, player) {
    this.id = id;
    this.data = data;
    this.player = player;
    this.anchor = 0; // this episode's time where the player's is zero
    this.view = [0, Math.max(data.seconds, 0.001)];
    this.traces = {};
    this.more = false;
    this.cameras = Object.entries(data.cameras).map(([name, camera]) => new Camera(data.id, name, camera, this));
    this.charts = [];
    this.timeline = new Timeline(this, player);
    this.grid = make("div", { className: "charts" });
    this.element = make("section", { className: "pane" }, this.heading(), this.pictures(), this.flagList(), this.grid, this.rest());
    this.element.dataset.pane = id;
    this.plan();
    this.sized = new ResizeObserver(() => { this.render(); this.player.redraw(); });
    this.sized.observe(this.grid);
    this.ready = Promise.all([this.load(), ...this.cameras.map((camera) => camera.ready)]).then(() => this.timeline.render());
  }

  heading() {
    const { data } = this;
    const outcome = make("span", { className: `outcome ${data.outcome}`, title: data.reason }, data.outcome);
    const facts = [data.kind, duration(data.seconds), `${data.ticks} ticks at ${+data.fps.toFixed(2)} Hz`,
      data.provenance?.robot, data.recovered ? "recovered after a crash" : null];
    const drops = Object.entries(data.drops).map(([name, d]) => `${d.count} of ${name}`);
    return make("div", { className: "pane-head" },
      make("div", {}, make("h2", {}, data.task), outcome),
      make("p", { className: "dim" }, make("span", { className: "mono" }, data.id), " · ", facts.filter(Boolean).join(" · "),
        drops.length ? make("span", { className: "bad" }, ` · dropped: ${drops.join(", ")}`) : null));
  }

  pictures() {
    if (!this.cameras.length) return make("p", { className: "none dim" }, "This episode has no cameras.");
    return make("div", { className: `cameras ${this.cameras.length > 4 ? "many" : ""}` }, ...this.cameras.map((camera) => camera.element));
  }

  flagList() {
    if (!this.data.flags.length) return make("p", { className: "flags dim" }, "no flags");
    return make("div", { className: "flags" }, ...this.data.flags.slice(0, 200).map((flag) => {
      const chip = make("button", { className: "chip", title: this.flagWords(flag).join("\n") }, swatch(flagName(flag.kind)), `${flag.kind} ${seconds(flag.start)}`);
      chip.addEventListener("click", () => this.seek(flag.start));
      return chip;
    }));
  }

  rest() {
    const words = JSON.stringify(this.data.provenance, null, 1);
    return make("details", { className: "provenance dim" }, make("summary", {}, "Where it comes from"), make("pre", { className: "mono" }, words.slice(0, 20000)));
  }

  /** Which charts there are; joints first, then what is shown for all joints at once. */
  plan() {
    const { streams } = this.data;
    const wide = (name) => (streams[name] ? streams[name].shape.reduce((a, b) => a * b, 1) : 0);
    const label = (name, i) => (streams[name].names[i] ?? String(i)).replace(/\.pos$/, "");
    const looks = { "observation.state": ["position", "position", null], action: ["goal", "goal", null], "action.asked": ["asked", "asked", [3, 3]] };
    const first = TICKED.find((name) => wide(name));
    this.charts = [];
    for (let joint = 0; first && joint < Math.min(wide(first), 16); joint += 1) {
      const title = label(first, joint);
      const lines = ["action.asked", "action", "observation.state"].filter((name) => joint < wide(name))
        .map((name) => ({ stream: name, series: joint, label: looks[name][0], color: looks[name][1], dash: looks[name][2] }));
      this.charts.push(new Chart(title, lines.reverse(), this));
    }
    const overlay = (name, title) => {
      const lines = [...Array(Math.min(wide(name), 8)).keys()]
        .map((i) => ({ stream: name, series: i, label: label(name, i), color: `joint-${(i % 8) + 1}` }));
      this.charts.push(new Chart(title, lines, this, streams[name].unit));
    };
    for (const [name, title] of OVERLAID) if (wide(name)) overlay(name, title);
    const shown = new Set([...TICKED, ...OVERLAID.map(([name]) => name), "tick.source"]);
    const others = Object.keys(streams).filter((name) => !shown.has(name));
    if (this.more) for (const name of others.slice(0, MAX_CHARTS)) overlay(name, name.replace("observation.", ""));
    const button = others.length ? make("button", { className: "more" }, this.more ? "fewer streams" : `${others.length} more streams`) : null;
    button?.addEventListener("click", () => { this.more = !this.more; this.plan(); this.load(); });
    const unit = first ? streams[first].unit : "";
    const key = first ? make("div", { className: "key dim" }, ...["position", "goal", "asked"].flatMap((name) => [swatch(name), name === "goal" ? "goal (let through)" : name]), unit ? `\u00a0 · ${unit}` : "",
      make("span", { className: "key-bands" }, ...["teleop", "policy", "intervention"].flatMap((name) => [swatch(name), name])), button) : button;
    this.grid.replaceChildren(...[key].filter(Boolean), ...this.charts.map((chart) => chart.element));
  }

  async load() {
    const names = [...new Set(this.charts.flatMap((chart) => chart.lines.map((line) => line.stream)))];
    if (!names.length) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const points = Math.max(150, Math.min(1200, Math.round((this.charts[0]?.canvas.clientWidth || 400) * 1.2)));
    const [from, to] = this.view;
    try {
      const traces = await ask(`episode/${part(this.data.id)}/traces`, { names: names.join(","), from, to, points });
      if (turn !== this.turn) return;
      this.traces = traces;
      this.render();
    } catch (error) {
      this.grid.prepend(make("p", { className: "error" }, `no traces: ${error.message}`));
    }
    this.refresh();
  }

  render() {
    for (const chart of this.charts) chart.render(this.traces);
    this.timeline.render();
  }

  /** Draw this episode as it was at the player's time. */
  show(time, speed) {
    const mine = time + this.anchor;
    for (const camera of this.cameras) camera.show(mine, speed);
    for (const chart of this.charts) chart.cursor(mine);
    this.timeline.cursor(mine);
  }

  refresh() { this.player.redraw(); }
  seek(mine) { this.player.seek(mine - this.anchor); }

  zoom(around, factor) {
    const [from, to] = this.view;
    const width = Math.max(0.1, Math.min(this.data.seconds, (to - from) * factor));
    const start = Math.max(0, Math.min(this.data.seconds - width, around - ((around - from) / (to - from)) * width));
    this.view = [start, start + width];
    this.render();
    this.refresh();
    clearTimeout(this.later);
    this.later = setTimeout(() => this.load(), 120);
  }

  unzoom() { this.zoom(0, Infinity); }

  faults() { return this.cameras.flatMap((camera) => camera.faults()).sort((a, b) => a[0] - b[0]); }
  flagColor(flag) { return flagColor(flag.kind); }

  flagAt(time, slack = 0.06) {
    const near = this.data.flags.filter((flag) => time >= flag.start - slack && time <= flag.end + slack);
    return near.sort((a, b) => Math.abs(a.start - time) - Math.abs(b.start - time))[0];
  }

  flagWords(flag) {
    const lines = [flag.kind, `${seconds(flag.start)} to ${seconds(flag.end)}`];
    if (flag.score !== null) lines.push(`score ${+flag.score.toPrecision(4)}`);
    for (const [name, value] of Object.entries(flag.evidence ?? {})) lines.push(`${name}: ${plain(value)}`);
    return lines;
  }

  /** Instants one can step through: every camera's frames, or the ticks where there is no camera. */
  instants() {
    if (!this.steps) {
      const all = this.cameras.flatMap((camera) => camera.times);
      const tick = 1 / this.data.fps;
      this.steps = all.length ? [...new Set(all)].sort((a, b) => a - b)
        : Array.from({ length: Math.min(200000, Math.ceil(this.data.seconds / tick) + 1) }, (_, i) => i * tick);
    }
    return this.steps;
  }

  close() {
    this.sized.disconnect();
    clearTimeout(this.later);
    for (const camera of this.cameras) camera.close();
    this.element.remove();
    this.timeline.canvas.remove();
  }
}

function swatch(name) {
  const element = make("span", { className: "swatch" });
  element.style.background = `var(--${name})`;
  return element;
}

function plain(value) {
  if (typeof value === "number") return String(+value.toPrecision(4));
  const words = typeof value === "string" ? value : JSON.stringify(value);
  return words.length > 160 ? `${words.slice(0, 160)}…` : words;
}
