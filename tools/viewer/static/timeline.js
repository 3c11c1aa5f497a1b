// The strip to scrub on: who commanded, take-overs, flags with their evidence, faults of the cameras.

import { color, fit, make, SOURCES, tip } from "./api.js";

const PAD = 10;

export class Timeline {
  /** `player.span` is the time all timelines show; `pane.anchor` is this episode's time at zero. */
  constructor(pane, player) {
    this.pane = pane;
    this.player = player;
    this.canvas = make("canvas", { className: "timeline" });
    this.canvas.dataset.timeline = pane.id;
    this.back = document.createElement("canvas");
    this.canvas.addEventListener("pointerdown", (event) => { this.canvas.setPointerCapture(event.pointerId); player.seek(this.at(event)); });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) player.seek(this.at(event));
      this.hover(event);
    });
    this.canvas.addEventListener("pointerleave", () => tip(null));
  }

  x(time) {
    const [from, to] = this.player.span;
    return PAD + ((time - this.pane.anchor - from) / (to - from || 1)) * (this.canvas.clientWidth - 2 * PAD);
  }

  at(event) {
    const [from, to] = this.player.span;
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - PAD) / Math.max(1, box.width - 2 * PAD);
    return from + Math.max(0, Math.min(1, share)) * (to - from);
  }

  hover(event) {
    const time = this.at(event) + this.pane.anchor;
    const flag = this.pane.flagAt(time, (this.player.span[1] - this.player.span[0]) / Math.max(1, this.canvas.clientWidth) * 5);
    if (flag) { tip(event, ...this.pane.flagWords(flag)); return; }
    const source = this.pane.data.sources.find(([start, end]) => time >= start && time <= end);
    tip(source ? event : null, source ? SOURCES[source[2]] ?? `source ${source[2]}` : "", `at ${time.toFixed(2)} s`);
  }

  render() {
    const { context, height } = fit(this.canvas);
    const data = this.pane.data;
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const bar = (start, end, top, size, paint, least = 1) => {
      context.fillStyle = paint;
      context.fillRect(this.x(start), top, Math.max(least, this.x(end) - this.x(start)), size);
    };
    bar(0, data.seconds, 13, 10, color("track"));
    for (const [start, end, code] of data.sources) bar(start, end, 13, 10, color(SOURCES[code] ?? "none"));
    for (const span of data.interventions) bar(span.start, span.end, 13, 10, color("intervention"));
    const lanes = [];
    for (const flag of data.flags) { // flags that overlap lie in lanes of their own, as far as there is room
      let lane = lanes.findIndex((end) => end < flag.start);
      if (lane < 0) lane = lanes.length < 3 ? lanes.push(0) - 1 : 2;
      lanes[lane] = flag.end;
      bar(flag.start, flag.end, 1 + lane * 4, 3, this.pane.flagColor(flag), 3);
      context.beginPath();
      context.moveTo(this.x(flag.start) - 4, 1);
      context.lineTo(this.x(flag.start) + 4, 1);
      context.lineTo(this.x(flag.start), 10);
      context.fill();
    }
    let last = -9;
    for (const [time, kind] of this.pane.faults()) {
      if (this.x(time) - last < 1.5) continue;
      last = this.x(time);
      bar(time, time, 25, height - 26, color(kind === "lost" ? "bad" : "warn"), 1.5);
    }
    this.back.width = this.canvas.width;
    this.back.height = this.canvas.height;
    this.back.getContext("2d").drawImage(this.canvas, 0, 0);
  }

  cursor(time) {
    if (!this.back.width) return;
    const { context, height } = fit(this.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.back, 0, 0);
    fit(this.canvas);
    context.fillStyle = color("cursor");
    context.fillRect(Math.round(this.x(time)) - 1, 0, 2, height);
  }
}
