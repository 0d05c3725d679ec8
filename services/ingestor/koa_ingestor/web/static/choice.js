/** What is looked at; it lives in the URL, so that a view can be kept and shared. */

/**
 * Columns of the list in their order: [name, heading, at least so many px, share of what is
 * left, sort].
 */
export const COLUMNS = [
  ["preview", "Preview", 60, 0, null],
  ["koaid", "KOAID", 176, 1.3, "koaid"],
  ["instrument", "Instrument", 82, 0, "instrument"],
  ["type", "Type", 78, 0, "type"],
  ["target", "Target", 92, 1, "target"],
  ["exposure", "Exp.", 60, 0, "exposure"],
  ["program", "Program", 104, 0, "program"],
  ["state", "State", 205, 1.6, "state"],
  ["levels", "Levels", 44, 0, "level"],
  ["ut", "UT", 66, 0, "acquired"],
  ["age", "Age", 76, 0, "acquired"],
  ["latency", "Latency", 70, 0, "latency"],
  ["file", "File", 118, 1, "file"],
  ["size", "Size", 70, 0, "size"],
];
const UNUSUAL = new Set(["program", "file", "size"]);
const USUAL = COLUMNS.map(([name]) => name).filter((name) => !UNUSUAL.has(name));
/** What can be looked at, and how it is called. */
export const LEVELS = new Map([["0", "Raw frames"], ["1", "Level 1, quick look"], ["2", "Level 2, for science"], ["all", "All levels"]]);
/** What gives way first where there is little room. */
const SPARED = ["exposure", "type", "ut", "instrument", "latency", "age", "levels"];

/**
 * @typedef {Object} Choice
 * @property {string | null} night UT date; null follows the latest
 * @property {string[]} instrument none are all
 * @property {string[]} state none are all
 * @property {string} program "" is all
 * @property {string} level "0" is raw, "1" and "2" are reduced, or "all"
 * @property {string} q
 * @property {string} sort a column, with - in front from high to low
 * @property {string[]} columns
 * @property {string | null} frame whose detail view is open: a frame_id or KOAID
 */

/** @returns {Choice} */
export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const list = (name) => (given.get(name) ?? "").split(",").filter(Boolean);
  const night = given.get("night") ?? "";
  const columns = list("columns").filter((name) => COLUMNS.some((column) => column[0] === name));
  return {
    night: /^\d{4}-\d\d-\d\d$/.test(night) ? night : null,
    instrument: list("instrument"),
    state: list("state"),
    program: given.get("program") ?? "",
    level: LEVELS.has(given.get("level")) ? given.get("level") : "0",
    q: given.get("q") ?? "",
    sort: given.get("sort") ?? "-acquired",
    columns: columns.length ? columns : [...USUAL],
    frame: given.get("frame"),
  };
}

/** @param {Choice} choice @returns {string} the query, "" for what is usual */
export function write(choice) {
  const told = {
    night: choice.night,
    instrument: choice.instrument.join(","),
    state: choice.state.join(","),
    program: choice.program,
    level: choice.level === "0" ? "" : choice.level,
    q: choice.q,
    sort: choice.sort === "-acquired" ? "" : choice.sort,
    columns: choice.columns.join(",") === USUAL.join(",") ? "" : choice.columns.join(","),
    frame: choice.frame,
  };
  const query = new URLSearchParams(Object.entries(told).filter(([, value]) => value));
  return query.size ? `?${query.toString().replaceAll("%2C", ",")}` : "";
}

/** The columns that there is room for; who chose columns has them all. @param {number} px */
export function fitting(columns, px) {
  if (columns.join() !== USUAL.join()) return columns;
  const some = [...columns];
  const room = () => COLUMNS.reduce((sum, [name, , least]) => sum + (some.includes(name) ? least + 8 : 0), 70);
  for (const name of SPARED) if (room() > px) some.splice(some.indexOf(name), 1);
  return some;
}

/** The value in or out of a list. */
export function toggled(list, value) {
  return list.includes(value) ? list.filter((one) => one !== value) : [...list, value];
}

/** The columns with one in or out, in their order; the last one stays. */
export function withColumn(columns, name) {
  const wanted = toggled(columns, name);
  return wanted.length ? COLUMNS.map(([one]) => one).filter((one) => wanted.includes(one)) : columns;
}
