/** The night page: wires the list, the strip, the detail view, the stream and the URL together. */

import { ApiError, get, saveAs } from "./api.js";
import * as choices from "./choice.js";
import { byId, el, fill, oncePerFrame, write } from "./dom.js";
import { Detail } from "./detail.js";
import { Night } from "./frames.js";
import { listenToKeys } from "./keys.js";
import * as previews from "./previews.js";
import { files, script } from "./script.js";
import { askForToken, wireSignIn } from "./sign-in.js";
import { Stream } from "./stream.js";
import { Strip } from "./strip.js";
import { Table } from "./table.js";
import { wireTheme } from "./theme.js";
import { age, clock, count, size } from "./words.js";

const PAGES = [100, 400]; // frames of the first page, which is painted at once, and of the others
const QUIET = 15_000; // ms between two announcements of arrivals to a screen reader

let choice = choices.read();
let overview = null;
let stream = null;
let opening = new AbortController();
let isNews = false; // whether what is drawn next came by itself
let loading = false;
const link = { state: "connecting", why: "", since: Date.now() };
const arrived = { count: 0, last: null, at: 0 };
const night = new Night();
const strip = new Strip(byId("strip"), (state) => choose({ state: choices.toggled(choice.state, state) }));
const detail = new Detail(byId("detail"), {
  close: () => choose({ frame: null }, true),
  fail: complain,
  kin: (koaid) => night.kin(koaid),
  open: (id) => choose({ frame: id }, true),
});
const table = new Table(byId("headings"), byId("rows"), {
  open: (row) => choose({ frame: row.id }, true),
  picked: showSelection,
  sort: (by) => choose({ sort: choice.sort === `-${by}` ? by : `-${by}` }),
});
const soon = oncePerFrame(draw);

// The choice and the URL.

/** Change the choice; `isStep` makes it one that the browser's Back takes back. */
function choose(change, isStep = false) {
  const before = choice;
  choice = { ...choice, ...change };
  const url = `${location.pathname}${choices.write(choice)}`;
  history[isStep ? "pushState" : "replaceState"](null, "", url);
  follow(before);
}

addEventListener("popstate", () => {
  const before = choice;
  choice = choices.read();
  byId("search").value = choice.q;
  follow(before);
});

function follow(before) {
  if (before.columns.join() !== choice.columns.join() || before.sort !== choice.sort) table.arrange(choice.columns, choice.sort);
  if (before.frame !== choice.frame) showDetail();
  if (before.night !== choice.night) return open();
  isNews = false;
  draw();
  if (before.q !== choice.q || before.state !== choice.state || before.instrument !== choice.instrument || before.program !== choice.program || before.level !== choice.level)
    say(`${count(table.rows.length, "frame")} shown`);
}

// A night.

/** Read the night that is chosen, or the latest. */
async function open() {
  opening.abort();
  opening = new AbortController();
  const { signal } = opening;
  loading = true;
  try {
    await insist(() => stream.placed, signal);
    overview = await insist(() => get("/v1/overview", { night: choice.night }, signal), signal);
    const date = choice.night ?? overview.latest ?? overview.night;
    if (date !== night.date) {
      night.open(date);
      table.picked.clear();
      table.seen = null;
      table.body.scrollTop = 0;
    }
    showOverview();
    await list(date, signal);
    loading = false;
    isNews = false;
    draw();
    say(`Night of ${date}: ${count(night.at("0").length, "raw frame")}`);
  } catch (error) {
    if (!signal.aborted) refused(error);
  }
}

async function list(date, signal) {
  night.begin();
  let cursor = null;
  do {
    const limit = PAGES[cursor ? 1 : 0];
    const page = await insist(() => get("/v1/frames", { night: date, limit, cursor }, signal), signal);
    night.list(page.items);
    cursor = page.next;
    isNews = false;
    soon();
  } while (cursor);
  night.end();
}

/** Ask until there is an answer; what is refused is not asked again. */
async function insist(act, signal) {
  for (let wait = 500; ; wait = Math.min(5000, wait * 2)) {
    try {
      return await act();
    } catch (error) {
      if (signal.aborted || (error instanceof ApiError && error.status < 500)) throw error;
      showLink("lost", error.message);
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (signal.aborted) throw error;
    }
  }
}

function refused(error) {
  complain(error.message);
  if (error.status === 401) askForToken();
}

function listen() {
  stream?.close();
  stream = new Stream({
    reset: open,
    state: showLink,
    frame(frame) {
      if (choice.night === null && night.date && frame.night > night.date) return open(); // a night begins
      const what = night.tell(frame);
      if (what === "new" && !loading && !frame.level) Object.assign(arrived, { count: arrived.count + 1, last: frame });
      if (detail.frame?.frame_id === frame.frame_id) detail.show(frame);
      else if (frame.koaid && detail.frame?.koaid === frame.koaid) detail.kin();
      if (what !== "elsewhere" || night.at(choice.level).length !== table.rows.length) {
        isNews = true;
        soon();
      }
    },
  });
  stream.run();
}

// What is shown.

function draw() {
  const chosen = night.chosen(choice);
  table.show(chosen, isNews);
  isNews = true;
  strip.show(night, choice.state);
  showInstruments();
  const isNone = !chosen.length;
  const all = night.at(choice.level).length;
  byId("none").hidden = !isNone;
  if (isNone) write(byId("none"), loading ? "Reading the night…" : all ? "No frame of this night matches. Escape clears the search." : "No frames yet in this night. They appear here by themselves.");
  const told = chosen.length === all ? count(all, "frame") : `${chosen.length.toLocaleString("en")} of ${count(all, "frame")}`;
  write(byId("shown"), choice.level === "0" ? told : `${told}; the counts and latencies above are of raw frames`);
}

function showInstruments() {
  const counts = night.counts("instrument", choice.level);
  for (const { instrument } of overview?.sources ?? []) if (!counts.has(instrument)) counts.set(instrument, 0);
  for (const instrument of choice.instrument) if (!counts.has(instrument)) counts.set(instrument, 0);
  const wanted = [...counts].sort();
  const root = byId("instruments");
  if (root.dataset.names !== wanted.map(([name]) => name).join()) {
    root.dataset.names = wanted.map(([name]) => name).join();
    const button = (name) => el("button", { type: "button", "data-name": name, click: () => choose({ instrument: choices.toggled(choice.instrument, name) }) }, name, el("span", { class: "number" }));
    fill(root, ...wanted.map(([name]) => button(name)));
  }
  [...root.children].forEach((button, n) => {
    write(button.lastElementChild, wanted[n][1] || "");
    button.setAttribute("aria-pressed", choice.instrument.includes(button.dataset.name));
    button.classList.toggle("none", !wanted[n][1]);
  });
  showPrograms();
  byId("level").value = choice.level;
  byId("levels").hidden = choice.level === "0" && night.at("0").length === night.rows.size;
}

function showPrograms() {
  const programs = [...new Set([...night.counts("program", choice.level).keys(), choice.program])].filter(Boolean).sort();
  const select = byId("program");
  if (select.dataset.names !== programs.join()) {
    select.dataset.names = programs.join();
    fill(select, el("option", { value: "" }, "All programs"), ...programs.map((name) => el("option", { value: name }, name)));
  }
  if (select.value !== choice.program) select.value = choice.program;
  byId("programs").hidden = !programs.length;
}

function showOverview() {
  byId("date").value = night.date;
  for (const way of ["earlier", "later"]) {
    byId(way).disabled = !overview[way];
    byId(way).title = overview[way] ?? "";
  }
  byId("latest").setAttribute("aria-pressed", choice.night === null);
  const { name, role, programs } = overview.caller;
  const who = { public: "Sign in", operator: `${name}, operator` }[role] ?? `${name}, ${count(programs.length, "program")}`;
  write(byId("who"), who);
  byId("who").title = programs.length ? programs.join(", ") : "";
  document.title = `${night.date} · KOA night`;
  strip.overview(overview);
}

/** Sources and canary are asked for again and again; the stream tells only of frames. */
async function refresh() {
  if (document.hidden || !overview) return;
  try {
    const seen = await get("/v1/overview", { night: choice.night });
    if (choice.night === null && seen.latest > night.date) return open();
    overview = seen;
    showOverview();
  } catch (error) {
    strip.overview(overview, "not known");
  }
}

/** Whether what is seen is what is. */
function showLink(state, why = "") {
  if (state !== link.state) link.since = stream?.heard ?? Date.now();
  if (state === "live" && link.state === "lost") say("Connected again; the list is up to date.");
  if (state === "lost" && link.state === "live") say("The connection is lost; what is shown may be stale.");
  Object.assign(link, { state, why });
  if (state === "refused") refused(new ApiError(401, "unauthorized", why));
  tellLink();
}

function tellLink() {
  const root = byId("link");
  root.className = link.state;
  const texts = { live: "Live", connecting: "Connecting…", refused: "Not signed in" };
  write(root.lastElementChild, texts[link.state] ?? "Reconnecting…");
  const isStale = link.state === "lost";
  byId("stale").hidden = !isStale;
  if (isStale) write(byId("stale"), `Stale: no connection for ${age((Date.now() - link.since) / 1000)}. What you see is as of ${clock(link.since)} UT; trying again. (${link.why})`);
}

async function showDetail() {
  const name = choice.frame;
  byId("main").classList.toggle("with-detail", Boolean(name));
  if (!name) {
    const wasIn = byId("detail").contains(document.activeElement);
    detail.close();
    if (wasIn || document.activeElement === document.body) table.grid.focus();
    return;
  }
  const row = night.rows.get(name) ?? [...night.rows.values()].find((one) => one.frame.koaid === name && !one.level);
  try {
    const frame = row?.frame ?? (await get(`/v1/frames/${encodeURIComponent(name)}`));
    if (choice.frame !== name) return;
    detail.show(frame);
    if (table.places.has(frame.frame_id)) table.goTo(frame.frame_id);
  } catch (error) {
    complain(`${name}: ${error.message}`);
  }
}

// Downloads of a selection.

function chosenRows() {
  return [...table.picked].map((id) => night.rows.get(id)).filter(Boolean);
}

function showSelection() {
  const rows = chosenRows();
  byId("selection").hidden = !rows.length;
  const some = files(rows, byId("whole").checked);
  const bytes = some.reduce((sum, { product }) => sum + product.size, 0);
  write(byId("picked"), `${count(rows.length, "frame")} selected: ${count(some.length, "file")}, ${size(bytes)}`);
  byId("script").disabled = !some.length;
}

function saveScript() {
  const text = script(files(chosenRows(), byId("whole").checked));
  const url = URL.createObjectURL(new Blob([text], { type: "text/x-shellscript" }));
  saveAs(url, `koa-${night.date}.sh`);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  say("The script is saved.");
}

// Search in other nights.

/** A KOAID, frame_id or file name that is not in this night is looked for in all. */
async function findElsewhere(text) {
  if (table.rows.length || !text.trim()) return;
  const name = text.trim();
  try {
    const found = (await get("/v1/frames", { name, limit: 1 })).items[0] ?? (await get(`/v1/frames/${encodeURIComponent(name)}`));
    byId("search").value = "";
    choose({ night: found.night, q: "", instrument: [], state: [], program: "", level: String(found.level), frame: found.frame_id }, true);
  } catch (error) {
    complain(error.status === 404 ? `No frame is called ${name}.` : error.message);
  }
}

// Words for everybody.

function say(text) {
  write(byId("say"), text);
}

function complain(text) {
  write(byId("complaint").firstElementChild, text);
  byId("complaint").hidden = false;
}

/** Arrivals are summed up for a screen reader, not called out one by one. */
function sumUp() {
  if (!arrived.count || Date.now() - arrived.at < QUIET) return;
  const { last } = arrived;
  say(`${count(arrived.count, "new frame")}, the last of ${last.instrument}`);
  Object.assign(arrived, { count: 0, at: Date.now() });
}

// Controls.

function wire() {
  const search = byId("search");
  search.value = choice.q;
  search.addEventListener("input", () => choose({ q: search.value }));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") findElsewhere(search.value);
  });
  byId("date").addEventListener("change", ({ target }) => {
    if (target.reportValidity()) choose({ night: target.value }, true);
  });
  for (const way of ["earlier", "later"]) byId(way).addEventListener("click", () => choose({ night: overview[way] }, true));
  byId("latest").addEventListener("click", () => choose({ night: null }, true));
  byId("program").addEventListener("change", (event) => choose({ program: event.target.value }));
  byId("level").append(...[...choices.LEVELS].map(([value, name]) => el("option", { value }, name)));
  byId("level").addEventListener("change", (event) => choose({ level: event.target.value }));
  byId("whole").addEventListener("change", showSelection);
  byId("script").addEventListener("click", saveScript);
  byId("unpick").addEventListener("click", () => (table.picked.clear(), showSelection(), table.draw()));
  byId("complaint").lastElementChild.addEventListener("click", () => (byId("complaint").hidden = true));
  byId("close-keys").addEventListener("click", () => byId("keys").close());
  byId("help").addEventListener("click", () => byId("keys").showModal());
  wireColumns();
  wireTheme(() => {
    strip.drawn = 0;
    soon();
  });
  wireSignIn(start);
  listenToKeys({ table, detail, choose, chosen: () => choice });
}

function wireColumns() {
  const boxes = choices.COLUMNS.map(([name, title]) => {
    const box = el("input", { type: "checkbox", name, change: () => choose({ columns: choices.withColumn(choice.columns, name) }) });
    return el("label", {}, box, title);
  });
  const menu = byId("columns");
  menu.append(...boxes);
  menu.parentElement.addEventListener("toggle", () => {
    for (const box of menu.querySelectorAll("input")) box.checked = choice.columns.includes(box.name);
  });
}

/** Somebody else looks: nothing of what was seen before stays. */
function start() {
  byId("complaint").hidden = true;
  previews.forget();
  detail.close();
  night.open("");
  table.picked.clear();
  showSelection();
  draw();
  listen();
  open().then(() => choice.frame && showDetail());
}

wire();
table.arrange(choice.columns, choice.sort);
start();
setInterval(refresh, 10_000);
setInterval(() => {
  tellLink();
  sumUp();
}, 1000);
