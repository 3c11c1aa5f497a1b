// One camera: which frame belongs to an instant, fetched ahead, drawn when due, its faults shown.

import { ask, lastBefore, make, part } from "./api.js";

const CACHE_BYTES = 96 << 20; // decoded, for each camera
const AHEAD_S = 0.8;
const FETCHES = 2; // at a time, for each camera; a browser has six connections in all
const RUN = 8; // frames in one request

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
    this.fetching = 0;
    this.keep = Math.max(24, Math.floor(CACHE_BYTES / (described.width * described.height * 4)));
    this.shown = -1;
    this.painted = 0; // pictures drawn so far
    this.canvas = make("canvas", { width: described.width, height: described.height });
    this.badge = make("span", { className: "badge", hidden: true });
    this.stamp = make("span", { className: "stamp mono" });
    this.element = make("figure", { className: "camera" }, this.canvas,
      make("figcaption", {}, make("b", {}, name), this.stamp, this.badge));
    this.element.dataset.camera = name;
    this.element.style.setProperty("--shape", String(described.width / described.height));
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
    const early = time + 1e-4 < this.times[0];
    const index = Math.max(0, lastBefore(this.times, time + 1e-4));
    this.prefetch(index, speed);
    const age = time - this.times[index];
    const last = index === this.times.length - 1;
    const bitmap = this.cache.get(index);
    if (bitmap && this.shown !== index) this.paint(bitmap, index);
    this.element.classList.toggle("stale", early || age > 2.5 * this.period);
    this.stamp.textContent = `#${index} ${this.times[index].toFixed(3)} s`;
    if (bitmap === "damaged") this.say("damaged frame", "bad");
    else if (early) this.say("not yet");
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

  /** Ask for the frames that will be due next and are not here, a run of them at a time. */
  prefetch(index, speed) {
    const ahead = Math.ceil(speed > 0 ? (AHEAD_S * Math.max(1, speed)) / this.period : 6);
    const end = Math.min(this.times.length, index + Math.min(ahead, this.keep >> 1) + 1);
    const missing = (i) => !this.cache.has(i) && !this.pending.has(i);
    for (let i = speed > 0 ? index : Math.max(0, index - 1); i < end && this.fetching < FETCHES; i += 1) {
      if (!missing(i)) continue;
      // What is due now comes alone, so that it comes at once.
      const most = i <= index ? 1 : RUN;
      let count = 1;
      while (count < most && i + count < end && missing(i + count)) count += 1;
      if (speed > 0 && i > index && count < RUN / 2 && i + count < this.times.length && i > index + RUN / 2) break; // wait for a fuller run
      this.fetch(i, count);
      i += count - 1;
    }
  }

  async fetch(start, count) {
    for (let i = start; i < start + count; i += 1) this.pending.add(i);
    this.fetching += 1;
    let jpegs = [];
    try {
      const reply = await fetch(`${this.base}${start}?count=${count}`);
      if (reply.ok) jpegs = split(await reply.arrayBuffer());
    } catch { jpegs = []; } // shown as damaged
    this.fetching -= 1;
    await Promise.all(Array.from({ length: count }, (_, i) => this.decode(start + i, jpegs[i])));
    this.owner.refresh();
  }

  async decode(index, jpeg) {
    let got = "damaged";
    try {
      if (jpeg?.byteLength) got = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    } catch { got = "damaged"; }
    this.pending.delete(index);
    if (this.closed) { got.close?.(); return; }
    this.cache.set(index, got);
    for (const old of this.cache.keys()) { // the oldest first
      if (this.cache.size <= this.keep) break;
      this.cache.get(old).close?.();
      this.cache.delete(old);
    }
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

/** Pictures one after the other, each behind its length (uint32, little-endian; 0 when it is damaged). */
function split(buffer) {
  const view = new DataView(buffer), found = [];
  for (let at = 0; at + 4 <= buffer.byteLength;) {
    const size = view.getUint32(at, true);
    found.push(new Uint8Array(buffer, at + 4, size));
    at += 4 + size;
  }
  return found;
}
