// One camera: which frame belongs to an instant, fetched ahead, drawn when due, its faults shown.

import { ask, lastBefore, make, part } from "./api.js";

const CACHE_BYTES = 96 << 20; // decoded, for each camera
const AHEAD_S = 0.8;
const FETCHES = 3; // at a time, for each camera; a browser has six connections in all

export class Camera {
  constructor(episode, name, described, owner) {
    this.base = `/api/episode/${part(episode)}/frame/${part(name)}/`;
    this.owner = owner;
    this.name = name;
    this.times = [];
    this.repeated = new Set();
    this.missing = new Map();
    this.cache = new Map(); // index -> ImageBitmap, or "damaged"
    this.pending = new Set();
    this.keep = Math.max(24, Math.floor(CACHE_BYTES / (described.width * described.height * 4)));
    this.shown = -1;
    this.painted = 0; // pictures drawn so far
    this.canvas = make("canvas", { width: described.width, height: described.height });
    this.badge = make("span", { className: "badge", hidden: true });
    this.stamp = make("span", { className: "stamp mono" });
    this.element = make("figure", { className: "camera" }, this.canvas,
      make("figcaption", {}, make("b", {}, name), this.stamp, this.badge));
    this.element.dataset.camera = name;
    this.element.style.setProperty("--shape", `${described.width} / ${described.height}`);
    this.ready = this.load(episode, name);
  }

  async load(episode, name) {
    try {
      const index = await ask(`episode/${part(episode)}/frames/${part(name)}`);
      this.times = index.t_ms.map((t) => t / 1000);
      this.repeated = new Set(index.repeated);
      this.missing = new Map(index.missing);
      const steps = this.times.slice(1).map((t, i) => t - this.times[i]).sort((a, b) => a - b);
      this.period = steps.length ? steps[steps.length >> 1] : 0.033;
    } catch (error) {
      this.say(`no frames: ${error.message}`, "bad");
    }
  }

  say(words, kind = "") {
    this.badge.hidden = !words;
    this.badge.textContent = words;
    this.badge.className = `badge ${kind}`;
  }

  /** Show what this camera saw at `time`; `speed` > 0 while playing, to fetch ahead. */
  show(time, speed) {
    if (this.closed || !this.times.length) return;
    const index = lastBefore(this.times, time + 1e-4);
    this.prefetch(Math.max(0, index), speed);
    if (index < 0) { this.say("before the first frame"); return; }
    const age = time - this.times[index];
    const last = index === this.times.length - 1;
    const bitmap = this.cache.get(index);
    if (bitmap && this.shown !== index) this.paint(bitmap, index);
    this.element.classList.toggle("stale", age > 2.5 * this.period);
    this.stamp.textContent = `#${index} ${this.times[index].toFixed(3)} s`;
    if (bitmap === "damaged") this.say("damaged frame", "bad");
    else if (age > 2.5 * this.period) this.say(last ? "camera ended" : `gap: ${Math.round(age * 1000)} ms old`, "bad");
    else if (this.repeated.has(index)) this.say("repeated", "warn");
    else if (this.missing.has(index)) this.say(`${this.missing.get(index)} lost after this`, "warn");
    else this.say("");
  }

  paint(bitmap, index) {
    this.shown = index;
    if (bitmap === "damaged") return;
    if (this.canvas.width !== bitmap.width) { this.canvas.width = bitmap.width; this.canvas.height = bitmap.height; }
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.painted += 1;
  }

  prefetch(index, speed) {
    const ahead = speed > 0 ? Math.ceil((AHEAD_S * Math.max(1, speed)) / this.period) : 4;
    const end = Math.min(this.times.length, index + Math.min(ahead, this.keep >> 1) + 1);
    const step = Math.max(1, Math.floor(speed / 2)); // at high speed not every frame can be shown
    for (let i = index; i < end && this.pending.size < FETCHES; i += i === index ? 1 : step) {
      if (!this.cache.has(i) && !this.pending.has(i)) this.fetch(i);
    }
    if (speed === 0 && index > 0 && this.pending.size < FETCHES && !this.cache.has(index - 1) && !this.pending.has(index - 1)) {
      this.fetch(index - 1);
    }
  }

  async fetch(index) {
    this.pending.add(index);
    let got = "damaged";
    try {
      const reply = await fetch(this.base + index);
      if (reply.ok) got = await createImageBitmap(await reply.blob());
    } catch { got = "damaged"; }
    this.pending.delete(index);
    if (this.closed) { got.close?.(); return; }
    this.cache.set(index, got);
    for (const old of this.cache.keys()) { // the oldest first
      if (this.cache.size <= this.keep) break;
      this.cache.get(old).close?.();
      this.cache.delete(old);
    }
    this.owner.refresh();
  }

  /** Marks for the timeline: [time, kind]. */
  faults() {
    const marks = [...this.repeated].map((i) => [this.times[i], "repeated"]);
    for (const i of this.missing.keys()) marks.push([this.times[i], "lost"]);
    return marks;
  }

  close() {
    this.closed = true;
    for (const bitmap of this.cache.values()) bitmap.close?.();
    this.cache.clear();
  }
}
