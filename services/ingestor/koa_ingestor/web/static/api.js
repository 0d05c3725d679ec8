/** Requests to the public API. The token lives in sessionStorage and in one header only. */

const KEY = "koa-token";

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is none; `code` as in the API's problem documents. */
export class ApiError extends Error {
  constructor(status, code, text) {
    super(text);
    this.status = status;
    this.code = code;
  }
}

/**
 * @param {string} path under this origin
 * @param {RequestInit} [more]
 * @returns {Promise<Response>} a successful answer; throws ApiError, or what fetch throws
 */
export async function ask(path, more = {}) {
  const headers = new Headers(more.headers);
  const known = token.get();
  if (known) headers.set("Authorization", `Bearer ${known}`);
  const answer = await fetch(path, { ...more, headers, credentials: "omit" });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, told.code ?? "", told.detail ?? `the service answered ${answer.status}`);
}

/** @returns {Promise<any>} the JSON of an answer */
export async function get(path, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const asked = given.length ? `${path}?${new URLSearchParams(given)}` : path;
  return (await ask(asked, { signal })).json();
}

/** Where a frame's parts are. */
export function of(frame, what = "", version = null) {
  const path = `/v1/frames/${encodeURIComponent(frame.frame_id)}${what ? `/${what}` : ""}`;
  return version ? `${path}?version=${version}` : path;
}

/** Save an answer under a name; a link alone would send no token. */
export async function save(path, name) {
  if (!token.get()) return saveAs(path, name);
  const url = URL.createObjectURL(await (await ask(path)).blob());
  saveAs(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function saveAs(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}
