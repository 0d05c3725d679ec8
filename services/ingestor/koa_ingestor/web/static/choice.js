/** What is looked at; it lives in the URL, so that a view can be kept and shared. */

/** Columns of the list in their order: [name, heading, width, whether shown unasked, sort]. */
export const COLUMNS = [
  ["preview", "Preview", "60px", true, null],
  ["koaid", "KOAID", "minmax(13.5em, 1.3fr)", true, "koaid"],
  ["instrument", "Instrument", "6.5em", true, "instrument"],
  ["type", "Type", "6em", true, "type"],
  ["target", "Target", "minmax(7em, 1fr)", true, "target"],
  ["exposure", "Exp.", "5em", true, "exposure"],
  ["program", "Program", "8em", false, "program"],
  ["state", "State", "minmax(15em, 1.6fr)", true, "state"],
  ["ut", "UT", "5.5em", true, "acquired"],
  ["age", "Age", "6em", true, "acquired"],
  ["latency", "Latency", "5.5em", true, "latency"],
  ["file", "File", "minmax(9em, 1fr)", false, "file"],
  ["size", "Size", "5.5em", false, "size"],
];
const USUAL = COLUMNS.filter((column) => column[3]).map(([name]) => name);

/**
 * @typedef {Object} Choice
 * @property {string | null} night UT date; null follows the latest
 * @property {string[]} instrument none are all
 * @property {string[]} state none are all
 * @property {string} program "" is all
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
    q: choice.q,
    sort: choice.sort === "-acquired" ? "" : choice.sort,
    columns: choice.columns.join(",") === USUAL.join(",") ? "" : choice.columns.join(","),
    frame: choice.frame,
  };
  const query = new URLSearchParams(Object.entries(told).filter(([, value]) => value));
  return query.size ? `?${query.toString().replaceAll("%2C", ",")}` : "";
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
