/** A frame's way, drawn to scale: one bar for each part, beside its times. */

import { el } from "./dom.js";
import { clock, duration } from "./words.js";

/** Parts of the way: what it is called, from which point to which. */
const PARTS = [
  ["Heard", "acquired", "detected"],
  ["Waited for the preparer", "detected", "process_start"],
  ["Products made", "process_start", "process_end"],
  ["Sent to the archive", "transfer_start", "transfer_end"],
  ["Handed over", "transfer_end", "ingest_start"],
  ["Copied and read back", "copy_start", "copy_end"],
  ["Catalogued", "copy_end", "available"],
];

/** @param {import("./frames.js").Frame} frame @returns {HTMLElement} */
export function timeline(frame, now = Date.now()) {
  const at = Object.fromEntries(Object.entries(frame.timeline ?? {}).filter(([, time]) => time).map(([name, time]) => [name, Date.parse(time)]));
  const times = Object.values(at);
  if (!times.length) return el("p", { class: "faint" }, "Nothing is on record yet.");
  const isOnItsWay = !at.available && !["INVALID", "ERROR", "DUPLICATE"].includes(frame.status);
  const start = Math.min(...times);
  const end = Math.max(...times, isOnItsWay ? now : 0);
  const span = Math.max(1, end - start);
  const lines = PARTS.filter(([, from]) => at[from] !== undefined && at[from] <= end).map(([name, from, to]) => {
    const isOpen = at[to] === undefined;
    if (isOpen && !isOnItsWay) return null;
    const until = at[to] ?? end;
    const bar = el("div", { class: isOpen ? "span open" : "span" });
    bar.style.left = `${(100 * (at[from] - start)) / span}%`;
    bar.style.width = `${Math.max(0.4, (100 * (until - at[from])) / span)}%`;
    const took = duration(Math.max(0, until - at[from]) / 1000);
    return el("tr", {},
      el("th", { scope: "row" }, name),
      el("td", { class: "track" }, bar),
      el("td", { class: "took" }, isOpen ? `${took} …` : took),
      el("td", { class: "at" }, `${clock(at[from])}.${String(at[from] % 1000).padStart(3, "0")}`));
  });
  return el("table", { class: "timeline" },
    el("caption", {}, `${duration(span / 1000)} from ${clock(start)} UT${isOnItsWay ? ", on its way" : ""}`),
    el("thead", {}, el("tr", {}, ...["Part", "To scale", "Took", "From, UT"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...lines));
}
