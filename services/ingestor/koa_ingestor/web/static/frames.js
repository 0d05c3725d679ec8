/** The frames of a night as the page knows them: rows, choice, order, counts. */

import { stateOf } from "./words.js";

/**
 * A frame as the API shows it; what the caller may not see is absent or null.
 * @typedef {Object} Frame
 * @property {string} frame_id
 * @property {string | null} [koaid]
 * @property {string} instrument
 * @property {number} level
 * @property {number | null} [version]
 * @property {string} status
 * @property {string} step
 * @property {string | null} [night] UT date
 * @property {string | null} [origin]
 * @property {string | null} [path]
 * @property {{code: string, severity: string, step: string, message: string}[]} findings
 * @property {Record<string, string>} timeline RFC 3339 UTC
 * @property {number | null} [latency_seconds]
 * @property {{name: string, size: number, role?: string, sha256?: string}[]} [products]
 * @property {{semid?: string, pi?: string, title?: string, institution?: string, release_date?: string} | null} [program]
 * @property {Record<string, any>} [metadata]
 * @property {number | null} [attempt]
 * @property {string | null} [next_attempt_at]
 * @property {string | null} [pipeline] that reduced it, and its version
 * @property {Link[]} [links] a raw frame's products, a product's raw frame
 */

/**
 * What the page knows of a frame of the same exposure at another level; a Frame is one, too.
 * @typedef {{frame_id: string, koaid: string, level: number, version?: number | null, status: string, pipeline?: string | null}} Link
 */

/**
 * What the list shows of a frame, computed once per change.
 * @typedef {Object} Row
 * @property {Frame} frame
 * @property {string} id
 * @property {boolean} open whether the caller sees the frame whole
 * @property {string} name KOAID, or what there is before it has one
 * @property {number} level 0 is raw, 1 and 2 are reduced
 * @property {Frame[]} reduced of a raw frame: the best of what there is of each other level
 * @property {string} state one of words.STATES
 * @property {number} acquired ms
 * @property {string} text what a search looks at, lower case
 */

/** @param {Frame} frame @returns {Row} */
export function rowOf(frame) {
  const core = frame.metadata ?? {};
  const file = (frame.path ?? "").split("/").at(-1);
  const times = frame.timeline ?? {};
  const told = times.acquired ?? times.detected ?? times.queued ?? Object.values(times).find(Boolean);
  const target = core.targname ?? core.object ?? "";
  const fits = (frame.products ?? []).find((p) => p.role === "fits" || p.name.endsWith(".fits"));
  return {
    frame,
    id: frame.frame_id,
    open: Boolean(frame.origin),
    name: frame.koaid ?? (file || "not named yet"),
    instrument: frame.instrument,
    level: frame.level,
    reduced: [],
    type: core.koaimtyp ?? "",
    target: String(target),
    exposure: core.elaptime ?? core.exposure ?? null,
    program: frame.program?.semid ?? "",
    state: stateOf(frame.status),
    acquired: told ? Date.parse(told) : Date.now(),
    latency: frame.latency_seconds ?? null,
    file,
    size: fits?.size ?? null,
    text: [frame.koaid, file, target].filter(Boolean).join("\n").toLowerCase(),
  };
}

const WHOLE_KOAID = /(^|\s)[a-z0-9]{2}\.\d{8}\.\d{5}\.\d\d/i;

/** How rows are put in order, by the names that the URL uses. */
const BY = {
  acquired: (row) => row.acquired,
  koaid: (row) => row.name,
  instrument: (row) => row.instrument,
  type: (row) => row.type,
  target: (row) => row.target.toLowerCase(),
  exposure: (row) => row.exposure,
  program: (row) => row.program,
  state: (row) => row.state,
  latency: (row) => row.latency,
  file: (row) => row.file,
  level: (row) => row.level,
  size: (row) => row.size,
};

export class Night {
  constructor() {
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    this.families = new Map(); // of each KOAID the frame_ids, at all levels
    this.date = "";
    this.told = null; // frames that the stream told of while a list is being read
  }

  /** Turn to another night. */
  open(date) {
    this.date = date;
    this.rows.clear();
    this.families.clear();
  }

  /** A list is about to be read: it may be older than what the stream tells meanwhile. */
  begin() {
    this.told = new Set();
    this.listed = new Set();
  }

  /** @param {Frame[]} frames a page of the list */
  list(frames) {
    for (const frame of frames) {
      this.listed.add(frame.frame_id);
      if (!this.told.has(frame.frame_id)) this.put(frame);
    }
  }

  /** Take a frame on; the raw frame of its exposure is another row then, as it shows all levels. */
  put(frame) {
    this.rows.set(frame.frame_id, rowOf(frame));
    if (!frame.koaid) return;
    const family = this.families.get(frame.koaid) ?? new Set();
    this.families.set(frame.koaid, family.add(frame.frame_id));
    const reduced = this.kin(frame.koaid).filter((one) => one.level);
    if (!reduced.length) return;
    for (const id of family) {
      const row = this.rows.get(id);
      if (row && !row.level && row.open) this.rows.set(id, { ...row, reduced });
    }
  }

  /** The frames of a KOAID, of each level the best: its last version, else what came last. @returns {Frame[]} */
  kin(koaid) {
    const rows = [...(this.families.get(koaid) ?? [])].map((id) => this.rows.get(id)).filter(Boolean);
    const rank = (row) => [row.frame.version ?? 0, row.acquired];
    rows.sort((a, b) => rank(b)[0] - rank(a)[0] || rank(b)[1] - rank(a)[1]);
    return [0, 1, 2].map((level) => rows.find((row) => row.level === level)?.frame).filter(Boolean);
  }

  /** The list is whole: what neither it nor the stream knows is gone. */
  end() {
    for (const id of this.rows.keys())
      if (!this.listed.has(id) && !this.told.has(id)) this.rows.delete(id);
    this.told = null;
  }

  /** A frame changed. @param {Frame} frame @returns {"new" | "changed" | "elsewhere"} */
  tell(frame) {
    this.told?.add(frame.frame_id);
    const known = this.rows.has(frame.frame_id);
    if (frame.night !== this.date) {
      this.rows.delete(frame.frame_id); // its header may name another night than its file did
      return "elsewhere";
    }
    this.put(frame);
    return known ? "changed" : "new";
  }

  /**
   * The rows that are chosen, in order.
   * @param {import("./choice.js").Choice} choice
   * @returns {Row[]}
   */
  chosen(choice) {
    const words = choice.q.toLowerCase().split(/\s+/).filter(Boolean);
    const level = WHOLE_KOAID.test(choice.q) ? "all" : choice.level; // who names an exposure has all of it
    const found = [];
    for (const row of this.at(level)) {
      if (choice.instrument.length && !choice.instrument.includes(row.instrument)) continue;
      if (choice.state.length && !choice.state.includes(row.state)) continue;
      if (choice.program && row.program !== choice.program) continue;
      if (words.every((word) => row.text.includes(word))) found.push(row);
    }
    return found.sort(order(choice.sort));
  }

  /** The rows of a level, or of "all". @param {string} level @returns {Row[]} */
  at(level) {
    const rows = [...this.rows.values()];
    return level === "all" ? rows : rows.filter((row) => String(row.level) === level);
  }

  /** How many rows of a level there are of each value. @returns {Map<string, number>} */
  counts(key, level = "0") {
    const found = new Map();
    for (const row of this.at(level))
      if (row[key]) found.set(row[key], (found.get(row[key]) ?? 0) + 1);
    return found;
  }
}

function order(sort) {
  const back = sort.startsWith("-");
  const key = BY[back ? sort.slice(1) : sort] ?? BY.acquired;
  const sign = back ? -1 : 1;
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x !== y) {
      // What is not known comes last, whichever way.
      if (x === null || x === "") return 1;
      if (y === null || y === "") return -1;
      return x < y ? -sign : sign;
    }
    return b.acquired - a.acquired || (a.id < b.id ? 1 : -1);
  };
}

/** The value that this share of the values does not exceed. @param {number[]} sorted */
export function percentile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)] : null;
}
