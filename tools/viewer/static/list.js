// The list of episodes, chosen by an SQL condition.

import { $, ask, duration, make } from "./api.js";

const PAGE = 200;
const CHIPS = [
  ["all", ""], ["success", "outcome = 'success'"], ["failure", "outcome = 'failure'"],
  ["flagged", "flagged"], ["corrected", "interventions > 0"], ["with gaps", "missing + dropped > 0"],
];

export class List {
  /** `open(id, beside)` is called when an episode is chosen. */
  constructor(open) {
    this.open = open;
    this.rows = [];
    this.where = "";
    this.turn = 0;
    this.chosen = ["", ""];
    $("filter").addEventListener("submit", (event) => { event.preventDefault(); this.apply($("where").value); });
    $("where").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.apply($("where").value); $("where").blur(); }
      if (event.key === "Escape") $("where").blur();
    });
  }

  chips(kinds) {
    const flags = kinds.map(({ kind, n }) => [`⚑ ${kind} ${n}`, `id IN (SELECT episode_id FROM flags WHERE kind = '${kind.replaceAll("'", "''")}')`]);
    $("chips").replaceChildren(...[...CHIPS, ...flags].map(([label, sql]) => {
      const chip = make("button", { type: "button", className: "chip", title: sql || "true" }, label);
      chip.dataset.sql = sql;
      chip.addEventListener("click", () => this.apply(sql));
      return chip;
    }));
  }

  async apply(where) {
    this.where = where.trim();
    $("where").value = where;
    this.rows = [];
    for (const chip of $("chips").children) chip.classList.toggle("on", chip.dataset.sql === this.where);
    await this.more();
  }

  async more() {
    const turn = (this.turn += 1);
    $("filter-error").hidden = true;
    try {
      const found = await ask("episodes", { where: this.where, limit: PAGE, offset: this.rows.length });
      if (turn !== this.turn) return;
      this.rows.push(...found.episodes);
      this.total = found.total;
      this.draw(found);
    } catch (error) {
      if (turn !== this.turn) return;
      $("filter-error").textContent = error.message;
      $("filter-error").hidden = false;
      $("list").replaceChildren();
      $("count").textContent = "";
    }
  }

  draw(found) {
    $("count").textContent = `${found.total} episode${found.total === 1 ? "" : "s"}, ${duration(found.seconds)}`;
    const items = this.rows.map((row) => this.item(row));
    if (this.rows.length < found.total) {
      const more = make("button", { className: "more" }, `${found.total - this.rows.length} older ones`);
      more.addEventListener("click", () => this.more());
      items.push(make("li", {}, more));
    }
    const scrolled = $("list").scrollTop;
    $("list").replaceChildren(...items);
    $("list").scrollTop = this.rows.length > PAGE ? scrolled : 0;
    this.mark(...this.chosen);
  }

  item(row) {
    const marks = [];
    if (row.flags) marks.push(make("span", { className: "mark", title: (row.kinds ?? []).join(", ") }, `⚑ ${row.flags}`));
    if (row.interventions) marks.push(make("span", { className: "mark hand", title: "somebody took over" }, `◆ ${row.interventions}`));
    if (row.missing + row.dropped) marks.push(make("span", { className: "mark bad", title: "samples or frames missing" }, `▲ ${row.missing + row.dropped}`));
    const beside = make("button", { className: "beside", title: "Compare: show beside the first one" }, "⇄");
    beside.addEventListener("click", (event) => { event.stopPropagation(); this.open(row.id, true); });
    const item = make("li", { className: "episode", title: `${row.id}\n${row.started_wall}\n${row.reason ?? ""}` },
      make("span", { className: `dot ${row.outcome}`, title: row.outcome }),
      make("div", { className: "names" }, make("div", { className: "id mono" }, row.id), make("div", { className: "task dim" }, `${row.kind} · ${row.task}`)),
      make("div", { className: "numbers" }, make("div", {}, duration(row.seconds ?? 0)), make("div", { className: "marks" }, ...marks)), beside);
    item.dataset.id = row.id;
    item.addEventListener("click", (event) => this.open(row.id, event.shiftKey));
    return item;
  }

  mark(a, b) {
    this.chosen = [a, b];
    for (const item of $("list").children) {
      item.classList.toggle("first", item.dataset.id === a);
      item.classList.toggle("second", item.dataset.id === b);
    }
  }

  neighbour(id, step) {
    const at = this.rows.findIndex((row) => row.id === id);
    return this.rows[Math.max(0, Math.min(this.rows.length - 1, at + step))]?.id;
  }
}
