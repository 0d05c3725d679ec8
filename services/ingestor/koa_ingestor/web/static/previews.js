/** Previews as blobs: they need the token, so no image element can ask for them itself. */

import { ask, of } from "./api.js";

const KEPT = 150; // previews that stay in memory
const AT_ONCE = 3; // of the six connections that a browser opens; lists and stream need theirs

/** @type {Map<string, Promise<string>>} blob URLs by frame and version, least used first */
const known = new Map();
/** @type {{key: string, start: () => void, wanted: (() => boolean)[]}[]} */
const waiting = [];
let running = 0;

/** Tell whether the caller may see a preview, and there is one. */
export function has(row) {
  return row.open && Boolean(row.frame.version) && row.frame.products.some((p) => p.role === "preview");
}

/**
 * @param {import("./frames.js").Row} row
 * @param {() => boolean} wanted is asked when its turn comes: what was scrolled away is left out
 * @returns {Promise<string>} a blob URL, "" if it is not to be had
 */
export function preview(row, wanted = () => true) {
  const key = `${row.id}/${row.frame.version}`;
  // Rows are drawn anew when the list's width changes: another line waits for the same image.
  waiting.find((one) => one.key === key)?.wanted.push(wanted);
  let found = known.get(key);
  known.delete(key);
  found ??= new Promise((resolve) => {
    waiting.push({ key, wanted: [wanted], start: () => load(row).then(resolve) });
    next();
  }).then((url) => (url || known.delete(key), url));
  known.set(key, found);
  return found;
}

/** Forget all, as somebody else may look now. */
export function forget() {
  for (const found of known.values()) found.then((url) => url && URL.revokeObjectURL(url));
  known.clear();
}

async function load(row) {
  try {
    return URL.createObjectURL(await (await ask(of(row.frame, "preview", row.frame.version))).blob());
  } catch {
    return ""; // the list shows a blank; the detail view asks again
  }
}

async function next() {
  if (running >= AT_ONCE || !waiting.length) return;
  const { wanted, start, key } = waiting.pop(); // the newest is what is looked at
  if (!wanted.some((ask) => ask())) {
    known.delete(key);
    return next();
  }
  running += 1;
  await start();
  running -= 1;
  trim();
  next();
}

function trim() {
  for (const [key, found] of known) {
    if (known.size <= KEPT) return;
    known.delete(key);
    found.then((url) => url && URL.revokeObjectURL(url));
  }
}
