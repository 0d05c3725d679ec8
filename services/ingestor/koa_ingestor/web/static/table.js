/** The list: a grid of which only the rows in sight are elements. */

import { COLUMNS, fitting } from "./choice.js";
import { el, fill, oncePerFrame, write } from "./dom.js";
import * as previews from "./previews.js";
import { age, clock, duration, HOPS, size, STATES, stateOf, whereabouts } from "./words.js";

const MARGIN = 5; // rows above and below what is in sight
const NARROW = matchMedia("(max-width: 700px)");
const STOPS = [...HOPS.keys()];

export class Table {
  /**
   * @param {HTMLElement} head the row of headings
   * @param {HTMLElement} body what scrolls
   * @param {{open: (row: any) => void, picked: () => void, sort: (by: string) => void}} told
   */
  constructor(head, body, told) {
    Object.assign(this, { head, body, told });
    this.grid = body.parentElement;
    this.canvas = body.firstElementChild; // as high as all rows together
    /** @type {import("./frames.js").Row[]} */
    this.rows = [];
    this.places = new Map();
    this.active = null; // the frame_id of the row that the keyboard is at
    this.picked = new Set();
    /** @type {Map<string, HTMLElement>} */
    this.shown = new Map();
    this.seen = null; // frame_ids that were there before: what is new lights up
    this.soon = oncePerFrame(() => this.draw());
    body.addEventListener("scroll", this.soon, { passive: true });
    body.addEventListener("click", (event) => this.click(event));
    body.addEventListener("dblclick", (event) => event.preventDefault());
    new ResizeObserver(() => (this.sort && this.fit(), this.soon())).observe(body);
    NARROW.addEventListener("change", () => this.again());
    setInterval(() => document.hidden || this.tick(), 1000);
  }

  get height() {
    return NARROW.matches ? 72 : 40;
  }

  /** Show these columns, in this order of rows. */
  arrange(columns, sort) {
    Object.assign(this, { wanted: columns, sort, columns: null });
    this.fit();
  }

  /** Show as many of the columns as there is room for. */
  fit() {
    const columns = fitting(this.wanted, NARROW.matches ? Infinity : this.grid.clientWidth);
    if (columns.join() === this.columns?.join()) return;
    this.columns = columns;
    const { sort } = this;
    const some = COLUMNS.filter(([name]) => columns.includes(name));
    const widths = some.map(([, , least, share]) => (share ? `minmax(${least}px, ${share}fr)` : `${least}px`));
    this.grid.style.setProperty("--columns", ["30px", ...widths].join(" "));
    const cells = some.map(([name, title, , , by]) => {
      const isBy = sort.replace("-", "") === by && name !== "ut";
      const way = isBy ? (sort.startsWith("-") ? "descending" : "ascending") : by ? "none" : null;
      const cell = el("div", { role: "columnheader", class: `c-${name}`, "aria-sort": way });
      cell.append(by ? el("button", { type: "button", "data-sort": by, click: () => this.told.sort(by) }, title) : title);
      return cell;
    });
    this.all = el("input", { type: "checkbox", "aria-label": "Select all frames of the list", change: () => this.pickAll() });
    fill(this.head, el("div", { role: "columnheader", class: "c-pick" }, this.all), ...cells);
    this.again();
  }

  /** Draw every row anew. */
  again() {
    this.canvas.replaceChildren();
    this.shown.clear();
    this.draw();
  }

  /**
   * Show these rows; who has scrolled down keeps what is in sight where it is.
   * @param {import("./frames.js").Row[]} rows
   * @param {boolean} isNews whether what is new in them has just arrived
   */
  show(rows, isNews) {
    const { scrollTop } = this.body;
    const top = this.rows[Math.floor(scrollTop / this.height)];
    const before = top ? this.places.get(top.id) : 0;
    this.fresh = isNews && this.seen ? rows.filter((row) => !this.seen.has(row.id)).map((row) => row.id) : [];
    this.rows = rows;
    this.places = new Map(rows.map((row, place) => [row.id, place]));
    this.seen = isNews && this.seen ? this.seen : new Set();
    for (const row of rows) this.seen.add(row.id);
    this.canvas.style.height = `${rows.length * this.height}px`;
    const now = top && this.places.get(top.id);
    if (isNews && scrollTop > this.height / 2 && now !== undefined && now !== before)
      this.body.scrollTop = scrollTop + (now - before) * this.height;
    this.grid.setAttribute("aria-rowcount", rows.length + 1);
    this.draw();
  }

  draw() {
    const { scrollTop, clientHeight } = this.body;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - MARGIN);
    const last = Math.min(this.rows.length, Math.ceil((scrollTop + clientHeight) / this.height) + MARGIN);
    const gone = new Set(this.shown.keys());
    for (let place = first; place < last; place += 1) {
      gone.delete(this.rows[place].id);
      this.put(this.rows[place], place);
    }
    for (const id of gone) {
      this.shown.get(id).remove();
      this.shown.delete(id);
    }
    this.fresh = [];
    this.head.style.paddingRight = `${10 + this.body.offsetWidth - this.body.clientWidth}px`; // the scroll bar
    this.grid.setAttribute("aria-activedescendant", this.shown.has(this.active) ? `row-${this.active}` : "");
    this.all.checked = this.rows.length > 0 && this.picked.size >= this.rows.length;
    this.all.indeterminate = this.picked.size > 0 && !this.all.checked;
  }

  put(row, place) {
    let line = this.shown.get(row.id);
    if (!line) {
      line = this.blank(row);
      if (this.fresh?.includes(row.id)) line.classList.add("fresh");
      this.shown.set(row.id, line);
      this.canvas.append(line);
    }
    const top = `translateY(${place * this.height}px)`;
    if (line.style.transform !== top) {
      line.style.transform = top;
      line.setAttribute("aria-rowindex", place + 2);
    }
    if (line.row !== row) this.paint(line, row);
    const isPicked = this.picked.has(row.id);
    if (line.box.checked !== isPicked) line.box.checked = isPicked;
    line.classList.toggle("active", row.id === this.active);
    line.setAttribute("aria-selected", isPicked);
  }

  blank(row) {
    const line = el("div", { role: "row", id: `row-${row.id}`, class: "row", "data-id": row.id });
    line.box = el("input", { type: "checkbox", tabindex: -1 });
    line.append(el("div", { role: "gridcell", class: "c-pick" }, line.box));
    line.cells = {};
    for (const [name] of COLUMNS) {
      if (!this.columns.includes(name)) continue;
      line.cells[name] = el("div", { role: "gridcell", class: `c-${name}` });
      line.append(line.cells[name]);
    }
    return line;
  }

  paint(line, row) {
    line.row = row;
    line.dataset.state = row.state;
    line.box.setAttribute("aria-label", `Select ${row.name}`);
    for (const [name, cell] of Object.entries(line.cells)) CELLS[name](cell, row, line);
  }

  /** What grows by itself. */
  tick() {
    for (const line of this.shown.values()) {
      if (line.cells.age) CELLS.age(line.cells.age, line.row);
      if (line.cells.latency && line.row.state === "way") CELLS.latency(line.cells.latency, line.row);
      if (line.cells.state && line.row.frame.next_attempt_at) CELLS.state(line.cells.state, line.row);
    }
  }

  // What people do.

  click(event) {
    const id = event.target.closest(".row")?.dataset.id;
    if (!id) return;
    if (event.target.closest(".c-pick")) {
      if (event.target.type !== "checkbox") event.preventDefault();
      return this.pick(id, event.shiftKey);
    }
    this.goTo(id);
    this.told.open(this.rows[this.places.get(id)]);
  }

  /** A row in or out of the selection; `through`: all up to it from the last one. */
  pick(id, through = false) {
    const [from, to] = [this.places.get(this.lastPick) ?? -1, this.places.get(id)];
    const isIn = !this.picked.has(id);
    const range = through && from >= 0 ? this.rows.slice(Math.min(from, to), Math.max(from, to) + 1) : [this.rows[to]];
    for (const row of range) isIn ? this.picked.add(row.id) : this.picked.delete(row.id);
    this.lastPick = id;
    this.told.picked();
    this.draw();
  }

  pickAll() {
    this.picked = new Set(this.all.checked ? this.rows.map((row) => row.id) : []);
    this.told.picked();
    this.draw();
  }

  /** @returns {import("./frames.js").Row | undefined} */
  get activeRow() {
    return this.rows[this.places.get(this.active)];
  }

  /** Move the active row by this many. */
  move(by) {
    if (!this.rows.length) return;
    const place = this.places.get(this.active);
    const wanted = place === undefined ? (by > 0 ? 0 : this.rows.length - 1) : place + by;
    this.goTo(this.rows[Math.max(0, Math.min(this.rows.length - 1, wanted))].id);
  }

  goTo(id) {
    this.active = id;
    const top = (this.places.get(id) ?? 0) * this.height;
    const { scrollTop, clientHeight } = this.body;
    if (top < scrollTop) this.body.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.body.scrollTop = top + this.height - clientHeight;
    this.draw();
  }
}

/** A level and where it is. @param {import("./frames.js").Link} one */
export function badge(one) {
  const told = `level ${one.level}: ${STATES.get(stateOf(one.status))}${one.pipeline ? `, ${one.pipeline}` : ""}`;
  return el("span", { class: "level", role: "img", "aria-label": told, title: told, "data-state": stateOf(one.status) }, one.level);
}

const hidden = (row) => (row.open ? "" : "proprietary");

/** How each column shows a row. @type {Record<string, (cell: any, row: any, line?: any) => void>} */
const CELLS = {
  preview(cell, row, line) {
    if (!previews.has(row)) return fill(cell);
    const key = `${row.id}/${row.frame.version}`;
    if (cell.dataset.of === key) return;
    cell.dataset.of = key;
    const image = el("img", { alt: "", decoding: "async" });
    fill(cell, image);
    // What is only scrolled past is not asked for.
    setTimeout(async () => {
      if (!line.isConnected) return delete cell.dataset.of;
      const url = await previews.preview(row, () => line.isConnected);
      if (url) image.src = url;
      else delete cell.dataset.of;
    }, 120);
  },
  koaid: (cell, row) => write(cell, row.name),
  instrument: (cell, row) => write(cell, row.instrument),
  type: (cell, row) => write(cell, row.type),
  target(cell, row) {
    write(cell, row.open ? row.target : hidden(row));
    cell.classList.toggle("closed", !row.open);
  },
  exposure: (cell, row) => write(cell, row.exposure === null ? "" : `${Math.round(row.exposure * 100) / 100} s`),
  program: (cell, row) => write(cell, row.program),
  state(cell, row) {
    if (cell.dataset.state !== row.state) {
      const road = row.state === "way" ? el("span", { class: "road", "aria-hidden": "true" }, ...STOPS.map(() => el("i"))) : null;
      cell.dataset.state = row.state;
      fill(cell, el("span", { class: "mark", "aria-hidden": "true" }), road, el("b", { class: road && "unseen" }, STATES.get(row.state)), el("span", { class: "where" }));
    }
    const stop = STOPS.indexOf(row.frame.status);
    [...(cell.querySelector(".road")?.children ?? [])].forEach((dot, n) => dot.classList.toggle("past", n <= stop));
    write(cell.lastElementChild, whereabouts(row.frame));
    cell.title = row.frame.findings.map((f) => `${f.code}: ${f.message || f.step}`).join("\n");
  },
  levels(cell, row) {
    const levels = row.level ? [row.frame] : row.reduced;
    fill(cell, ...levels.map((one) => badge(one)));
  },
  ut(cell, row) {
    write(cell, clock(row.acquired));
    cell.title = `acquired ${new Date(row.acquired).toISOString()}`;
  },
  age: (cell, row) => write(cell, age((Date.now() - row.acquired) / 1000)),
  latency(cell, row) {
    const waits = row.state === "way" ? age((Date.now() - row.acquired) / 1000) : "";
    write(cell, row.latency === null ? (waits && `${waits} …`) : duration(row.latency));
    cell.classList.toggle("late", (row.latency ?? 0) > 60);
  },
  file: (cell, row) => write(cell, row.file || hidden(row)),
  size: (cell, row) => write(cell, size(row.size)),
};
