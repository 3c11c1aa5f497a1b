// Asking the server, and small helpers for making elements.

export async function ask(path, params = {}) {
  const query = new URLSearchParams(params).toString();
  const reply = await fetch(`/api/${path}${query ? `?${query}` : ""}`);
  if (reply.ok) return reply.json();
  let why = `the server answered ${reply.status}`;
  try { why = (await reply.json()).error ?? why; } catch { why = "this page's session is over; open the link in the terminal"; }
  throw new Error(why);
}

export const part = encodeURIComponent;

/** Element with properties and children: make("div", {className: "x"}, "text", child). */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** An instant: 3.27 s, or 1:03.27. */
export function seconds(value) {
  const hundredths = Math.round(Math.abs(value) * 100);
  const sign = value < 0 && hundredths ? "−" : "";
  const rest = ((hundredths % 6000) / 100).toFixed(2);
  return hundredths >= 6000 ? `${sign}${Math.floor(hundredths / 6000)}:${rest.padStart(5, "0")}` : `${sign}${rest} s`;
}

export function duration(value) {
  const whole = Math.round(value);
  return whole >= 60 ? `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min` : `${value.toFixed(1)} s`;
}

/** Index of the last element <= value, or -1. */
export function lastBefore(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1; else high = middle;
  }
  return low - 1;
}

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// A kind of flag has one colour everywhere.
const FLAG_COLORS = ["flag-1", "flag-2", "flag-3", "flag-4", "flag-5", "flag-6"];
const known = new Map();
export function flagName(kind) {
  if (!known.has(kind)) known.set(kind, FLAG_COLORS[known.size % FLAG_COLORS.length]);
  return known.get(kind);
}
export const flagColor = (kind) => color(flagName(kind));

export const SOURCES = ["none", "teleop", "policy", "intervention", "replay"];

/** Size a canvas for the screen's pixels; its context, scaled to CSS pixels. */
export function fit(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, canvas.clientWidth), height = Math.max(1, canvas.clientHeight);
  const w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

export function tip(event, ...lines) {
  const box = $("tip");
  if (!event) { box.hidden = true; return; }
  box.replaceChildren(...lines.map((line, i) => make(i ? "div" : "strong", {}, line)));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
  box.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 16}px`;
}
