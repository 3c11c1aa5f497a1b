// The one clock of the page. Time is capture time, so a gap in a recording is a gap here.

import { lastBefore } from "./api.js";

export const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4, 8];
const LONGEST_STEP_S = 0.25; // a tab that was hidden goes on where it was

export class Player {
  constructor(onTime) {
    this.panes = [];
    this.onTime = onTime;
    this.time = 0;
    this.speed = 1;
    this.playing = false;
    this.span = [0, 0];
    this.frames = 0; // redraws while playing, and the longest time between two
    this.slowest = 0;
    this.drawing = false;
  }

  setPanes(panes) {
    this.panes = panes;
    this.align();
  }

  /** After an anchor changed: the span that holds all episodes. */
  align() {
    if (!this.panes.length) { this.span = [0, 0]; return; }
    this.span = [Math.min(...this.panes.map((p) => -p.anchor)), Math.max(...this.panes.map((p) => p.data.seconds - p.anchor))];
    for (const pane of this.panes) pane.timeline.render();
    this.seek(this.time);
  }

  play(on = !this.playing) {
    if (!this.panes.length) return;
    if (on && this.time >= this.span[1] - 1e-3) this.time = this.span[0];
    this.playing = on;
    this.last = null;
    this.frames = this.slowest = 0;
    this.redraw();
  }

  seek(time) {
    this.time = Math.max(this.span[0], Math.min(this.span[1], time));
    this.redraw();
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame((now) => this.draw(now));
  }

  draw(now) {
    this.drawing = false;
    if (this.playing) {
      if (this.last !== null) {
        const passed = (now - this.last) / 1000;
        this.time += Math.min(LONGEST_STEP_S, passed) * this.speed;
        this.frames += 1;
        this.slowest = Math.max(this.slowest, passed);
      }
      this.last = now;
      if (this.time >= this.span[1]) { this.time = this.span[1]; this.playing = false; }
    }
    for (const pane of this.panes) pane.show(this.time, this.playing ? this.speed : 0);
    this.onTime(this);
    if (this.playing) this.redraw();
  }

  step(direction) {
    this.playing = false;
    const pane = this.panes[0];
    if (!pane) return;
    const instants = pane.instants(), mine = this.time + pane.anchor;
    const here = lastBefore(instants, mine + 5e-4);
    const next = direction > 0 ? here + 1 : here - (here >= 0 && mine - instants[here] < 5e-4 ? 1 : 0);
    if (next >= 0 && next < instants.length) pane.seek(instants[next]); else this.redraw();
  }

  /** Jump to the next or previous flag of any episode shown. */
  flag(direction) {
    const times = this.panes.flatMap((p) => p.data.flags.map((f) => f.start - p.anchor)).sort((a, b) => a - b);
    const found = direction > 0 ? times.find((t) => t > this.time + 1e-3) : times.findLast((t) => t < this.time - 1e-3);
    if (found !== undefined) this.seek(found);
  }

  faster(direction) {
    const at = SPEEDS.indexOf(this.speed) + direction;
    this.speed = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, at))];
    this.redraw();
  }
}
