/** The live stream, read with fetch: resumes where it broke off, says when it is silent. */

import { ApiError, ask } from "./api.js";

const SILENCE = 25_000; // ms; the service sends a comment every 15 s
const WAITS = [250, 500, 1000, 2000, 5000]; // ms before one more try

/**
 * @typedef {Object} Listener
 * @property {(frame: import("./frames.js").Frame) => void} frame a frame changed
 * @property {() => void} reset what is kept does not reach back to where we were
 * @property {(state: "live" | "lost" | "refused", why: string) => void} state
 */

export class Stream {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.last = null; // the id to resume behind
    this.heard = Date.now(); // when the last byte came
    this.tries = 0;
    this.ending = new AbortController();
    /** Resolves once the place in the stream is known: what is listed later misses nothing. */
    this.placed = new Promise((resolve) => (this.place = resolve));
  }

  close() {
    this.ending.abort();
  }

  async run() {
    while (!this.ending.signal.aborted) {
      let why = "the connection ended";
      try {
        await this.listen();
      } catch (error) {
        why = error.message;
        if (error instanceof ApiError && error.status === 401) return this.give("refused", why);
      }
      if (this.ending.signal.aborted) return;
      this.give("lost", why);
      await this.pause(WAITS[Math.min(this.tries++, WAITS.length - 1)] * (0.75 + Math.random() / 2));
    }
  }

  give(state, why = "") {
    if (state === "refused") this.place();
    this.listener.state(state, why);
  }

  /** Wait, but not past the moment when the network is back. */
  pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      const now = () => (clearTimeout(timer), resolve());
      addEventListener("online", now, { once: true });
      this.ending.signal.addEventListener("abort", now, { once: true });
    });
  }

  async listen() {
    const silent = new AbortController();
    const signal = AbortSignal.any([silent.signal, this.ending.signal]);
    const watch = setInterval(() => {
      if (Date.now() - this.heard > SILENCE) silent.abort(new Error("nothing was heard"));
    }, 1000);
    this.heard = Date.now();
    try {
      const headers = this.last === null ? {} : { "Last-Event-ID": this.last };
      const answer = await ask("/v1/stream", { headers, signal, cache: "no-store" });
      this.tries = 0;
      this.give("live");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const parse = parser((event) => this.take(event));
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        this.heard = Date.now();
        parse(value);
      }
    } finally {
      clearInterval(watch);
    }
  }

  take({ id, event, data }) {
    if (event === "reset") this.listener.reset();
    else if (data) this.listener.frame(JSON.parse(data));
    if (id !== null) this.last = id; // behind the listener: what it did not take comes again
    this.place();
  }
}

/** @returns {(text: string) => void} takes pieces of a stream, gives whole events */
export function parser(give) {
  let rest = "";
  return (text) => {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { id: null, event: "", data: "" };
      for (const line of block.split("\n")) {
        const at = line.indexOf(":");
        const name = line.slice(0, at);
        if (name in event) event[name] = line.slice(at + 1).trimStart();
      }
      if (event.id !== null || event.event || event.data) give(event);
    }
  };
}
