// A chart over time: least to greatest as a band, bands of who commanded behind, a cursor in front.

import { color, fit, lastBefore, make, SOURCES, tip } from "./api.js";

const PAD = { left: 38, right: 4, top: 20, bottom: 4 };

export class Chart {
  /** `lines`: [{label, color (css variable), stream, series, dash}]. */
  constructor(title, lines, pane, unit = "") {
    this.title = title;
    this.lines = lines;
    this.pane = pane;
    this.canvas = make("canvas", { className: "plot" });
    this.legend = make("span", { className: "legend mono" });
    this.cells = lines.map((line) => {
      const value = make("i", {});
      value.style.color = `var(--${line.color})`;
      this.legend.append(value);
      return value;
    });
    this.element = make("div", { className: "chart" }, make("div", { className: "chart-title" }, make("span", { className: "what", title: unit }, make("b", {}, title), unit && lines.length <= 3 ? ` ${unit}` : ""), this.legend), this.canvas);
    this.element.dataset.chart = title;
    this.back = document.createElement("canvas");
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); pane.zoom(this.at(event), event.deltaY > 0 ? 1.25 : 0.8); }, { passive: false });
    this.canvas.addEventListener("dblclick", () => pane.unzoom());
    this.canvas.addEventListener("pointerdown", (event) => { this.canvas.setPointerCapture(event.pointerId); pane.seek(this.at(event)); });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) pane.seek(this.at(event));
      const flag = pane.flagAt(this.at(event));
      tip(flag ? event : null, ...(flag ? pane.flagWords(flag) : []));
    });
    this.canvas.addEventListener("pointerleave", () => tip(null));
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [from, to] = this.pane.view;
    const share = (event.clientX - box.left - PAD.left) / Math.max(1, box.width - PAD.left - PAD.right);
    return from + Math.max(0, Math.min(1, share)) * (to - from);
  }

  /** Draw everything but the cursor, into a canvas kept behind. */
  render(traces) {
    this.traces = traces;
    const { context, width, height } = fit(this.canvas);
    const [from, to] = this.pane.view;
    this.x = (t) => PAD.left + ((t - from) / (to - from || 1)) * (width - PAD.left - PAD.right);
    const [low, high] = this.range(from, to);
    const y = (v) => height - PAD.bottom - ((v - low) / (high - low)) * (height - PAD.top - PAD.bottom);
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(PAD.left, PAD.top - 4, width - PAD.left - PAD.right, height);
    context.clip();
    this.bands(context, height);
    context.restore();
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const v of ticks(low, high)) {
      context.strokeStyle = color("grid");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(PAD.left, Math.round(y(v)) + 0.5);
      context.lineTo(width - PAD.right, Math.round(y(v)) + 0.5);
      context.stroke();
      context.fillStyle = color("dim");
      context.fillText(short(v), PAD.left - 5, y(v));
    }
    context.beginPath();
    context.rect(PAD.left, PAD.top - 6, width - PAD.left - PAD.right, height);
    context.save();
    context.clip();
    for (const line of this.lines) this.line(context, traces[line.stream], line, y);
    context.restore();
    this.back.width = this.canvas.width;
    this.back.height = this.canvas.height;
    this.back.getContext("2d").drawImage(this.canvas, 0, 0);
  }

  range(from, to) {
    let low = Infinity, high = -Infinity;
    for (const line of this.lines) {
      const data = this.traces[line.stream];
      if (!data || !data.lo[line.series]) continue;
      data.t.forEach((t, i) => {
        if (t < from - data.step || t > to + data.step) return;
        const a = data.lo[line.series][i], b = data.hi[line.series][i];
        if (a !== null && a < low) low = a;
        if (b !== null && b > high) high = b;
      });
    }
    if (low > high) [low, high] = [0, 1];
    const least = { rad: 0.04, "°C": 2, V: 0.5, ms: 1 }[this.unit()] ?? 0.02; // noise is not blown up
    const room = Math.max(least - (high - low), (high - low) * 0.12) / 2;
    return [low - room, high + room];
  }

  unit() { return this.traces?.[this.lines[0]?.stream]?.unit ?? ""; }

  bands(context, height) {
    const fill = (start, end, paint, alpha) => {
      context.globalAlpha = alpha;
      context.fillStyle = paint;
      context.fillRect(this.x(start), PAD.top - 4, Math.max(1, this.x(end) - this.x(start)), height);
      context.globalAlpha = 1;
    };
    for (const [start, end, code] of this.pane.data.sources) if (code) fill(start, end, color(SOURCES[code] ?? "none"), 0.1);
    for (const span of this.pane.data.interventions) fill(span.start, span.end, color("intervention"), 0.1);
    const { flags } = this.pane.data, crowded = flags.length > 30;
    for (const flag of flags) fill(flag.start, flag.start, this.pane.flagColor(flag), crowded ? 0.25 : 0.75);
  }

  line(context, data, line, y) {
    if (!data || !data.lo[line.series]) return;
    const { t, step } = data, lo = data.lo[line.series], hi = data.hi[line.series];
    context.strokeStyle = context.fillStyle = color(line.color);
    context.lineWidth = line.dash ? 1 : 1.4;
    context.lineJoin = "round";
    context.setLineDash(line.dash ?? []);
    context.beginPath();
    let down = false, previous = null;
    for (let i = 0; i < t.length; i += 1) {
      if (lo[i] === null) { down = false; continue; }
      if (previous !== null && t[i] - previous > 2.5 * step + 1e-6) down = false; // a gap stays a gap
      const x = this.x(t[i]);
      if (down) context.lineTo(x, y(lo[i])); else context.moveTo(x, y(lo[i]));
      if (lo !== hi && hi[i] !== lo[i]) context.lineTo(x, y(hi[i]));
      down = true;
      previous = t[i];
    }
    context.stroke();
    context.setLineDash([]);
  }

  /** The cursor, and the values under it. */
  cursor(time) {
    if (!this.x || !this.back.width) return;
    const { context, width, height } = fit(this.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.back, 0, 0);
    fit(this.canvas);
    const x = this.x(time);
    if (x >= PAD.left && x <= width - PAD.right) {
      context.fillStyle = color("cursor");
      context.fillRect(Math.round(x) - 0.5, PAD.top - 4, 1, height);
    }
    this.lines.forEach((line, i) => {
      const data = this.traces[line.stream];
      const at = data ? lastBefore(data.t, time + 1e-4) : -1;
      const value = at >= 0 && time - data.t[at] <= 3 * data.step + 1e-3 ? data.hi[line.series]?.[at] : null;
      const words = value === null || value === undefined ? "–" : value.toFixed(digits(value, this.lines.length));
      if (this.cells[i].textContent !== words) this.cells[i].textContent = words;
    });
  }
}

function ticks(low, high) {
  const rough = (high - low) / 2.5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? power * 10;
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return found;
}

/** Fewer where many values stand side by side. */
const digits = (value, lines) => Math.max(0, (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2) - (lines > 3 && Math.abs(value) >= 10 ? 1 : 0));

const short = (v) => (Math.abs(v) >= 1000 || v === 0 ? String(Math.round(v)) : String(+v.toPrecision(3)));
