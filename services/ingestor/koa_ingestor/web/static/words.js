/** What people read: states and codes in words, times, durations, sizes. */

/** The road of a frame: status, and what happens there. The order is that of the road. */
export const HOPS = new Map([
  ["QUEUED", "heard, waits for the preparer"],
  ["PROCESSING", "products are being made"],
  ["TRANSFERRING", "on its way to the archive"],
  ["TRANSFERRED", "at the archive, waits its turn"],
  ["INGESTING", "copied and read back"],
]);

/** States as people choose them; every status is one of them. */
export const STATES = new Map([
  ["way", "On the way"],
  ["complete", "Available"],
  ["invalid", "Invalid"],
  ["error", "Error"],
  ["duplicate", "Duplicate"],
]);

/** @param {string} status */
export function stateOf(status) {
  return HOPS.has(status) ? "way" : status.toLowerCase();
}

/** What ends a frame, in words that don't depend on what the reader may see. */
const CODES = {
  ANNOUNCE_REFUSED: "the preparer does not take it",
  CHECKSUM_MISMATCH: "a checksum card does not match",
  CODE_ERROR: "an attempt failed",
  COMPRESSED_RAW: "the raw file is compressed",
  CORRUPTED_HDU: "its structure is corrupt",
  DUPLICATE: "the same bytes are archived already",
  DUPLICATE_KOAID: "another frame holds its KOAID",
  EMPTY_FILE: "the file is empty",
  FILEPATH_REJECT: "its path is none that is archived",
  FILE_TOO_LARGE: "the file is too large",
  FITS_FILE_TYPE_ERROR: "this is no regular file",
  FITS_NOT_FOUND: "the file was announced but is not there",
  HANDOVER_REFUSED: "the archive does not take it",
  INVALID_KOAID: "no KOAID can be made of its header",
  MANIFEST_MISMATCH: "a file is not what its manifest says",
  MISMATCHED_FILENAME: "its header names another file",
  OBJECT_DAMAGED: "an archived object is damaged",
  PRODUCT_MISSING: "a file of its set is missing",
  QUARANTINED: "the bytes are kept in quarantine",
  RAW_NOT_ARCHIVED: "its raw frame is not archived",
  RULE_CRASHED: "a rule of its instrument failed",
  SET_INSTR_ERROR: "its header names no known instrument",
  STAGING_MISSING: "a product is missing in staging",
  TOO_MANY_FILES: "its directory has too many files",
  TRUNCATED: "the file stops before its end",
  UNREADABLE_FITS: "this is no readable FITS file",
  VERIFICATION_FAILED: "what was archived is not what was declared",
  WORKER_DIED: "the process died while it worked on it",
};

/** @param {string} code */
export function codeInWords(code) {
  return CODES[code] ?? code.toLowerCase().replaceAll("_", " ");
}

/**
 * Why a frame is not available: the last fault among its findings.
 * @param {import("./frames.js").Frame} frame
 */
export function reason(frame) {
  const faults = frame.findings.filter((finding) => finding.severity !== "warning" || finding.code === "RAW_NOT_ARCHIVED");
  const last = faults.at(-1) ?? (stateOf(frame.status) === "duplicate" ? frame.findings.at(-1) : null);
  if (last) return codeInWords(last.code);
  return frame.status === "DUPLICATE" ? codeInWords("DUPLICATE") : frame.step;
}

/** Where a frame is, in a few words. */
export function whereabouts(frame, now = Date.now()) {
  if (frame.step === "refused") return codeInWords("ANNOUNCE_REFUSED");
  if (frame.next_attempt_at) {
    const left = Math.max(0, Date.parse(frame.next_attempt_at) - now) / 1000;
    return `${reason(frame)}, tries again in ${duration(left)}`;
  }
  if (frame.status !== "COMPLETE" && frame.findings.at(-1)?.code === "RAW_NOT_ARCHIVED") return codeInWords("RAW_NOT_ARCHIVED");
  if (HOPS.has(frame.status)) return HOPS.get(frame.status);
  if (frame.status !== "COMPLETE") return reason(frame);
  if (frame.findings.some((found) => found.code === "OBJECT_DAMAGED")) return codeInWords("OBJECT_DAMAGED");
  return frame.version > 1 ? `version ${frame.version}` : "";
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 60 ? 1 : 0)} s`;
  return age(seconds);
}

/** A coarse duration that is calm to look at. @param {number} seconds */
export function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.floor((seconds % 3600) / 60)} min` : `${Math.floor(hours / 24)} d`;
}

/** HH:MM:SS of a time, UT. @param {number} ms */
export function clock(ms) {
  return new Date(ms).toISOString().slice(11, 19);
}

/** @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  if (bytes < 1e3) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** "1 frame", "2 frames". */
export function count(n, what) {
  return `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
}
