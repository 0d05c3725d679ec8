/** The strip: frames by state, latency against the minute, sources, canary. */

import { el, fill, write } from "./dom.js";
import { percentile } from "./frames.js";
import { age, clock, count, duration, STATES } from "./words.js";

const GOAL = 60; // s from acquired to available that the observatory promises
const DAY = 86_400_000;

export class Strip {
  /** @param {HTMLElement} root @param {(state: string) => void} choose */
  constructor(root, choose) {
    const part = (name) => root.querySelector(`.${name}`);
    this.plot = part("plot");
    this.numbers = part("numbers");
    this.sources = part("sources");
    this.canary = part("canary");
    this.states = new Map();
    for (const [state, title] of STATES) {
      const number = el("span", { class: "number" }, "0");
      const button = el("button", { type: "button", "data-state": state, "aria-pressed": "false", click: () => choose(state) }, number, title);
      this.states.set(state, { button, number });
      part("states").append(button);
    }
  }

  /** @param {import("./frames.js").Night} night @param {string[]} chosen states */
  show(night, chosen) {
    const counts = night.counts("state");
    for (const [state, { button, number }] of this.states) {
      const n = counts.get(state) ?? 0;
      write(number, n.toLocaleString("en"));
      button.setAttribute("aria-pressed", chosen.includes(state));
      button.classList.toggle("none", n === 0);
    }
    if (Date.now() - (this.drawn ?? 0) < 1000) return this.later(night, chosen);
    this.drawn = Date.now();
    this.latency(night.at("0").filter((row) => row.latency !== null));
  }

  /** Numbers and plot once a second are enough, and nobody is stirred by more. */
  later(night, chosen) {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.show(night, chosen);
    }, 1000);
  }

  latency(rows) {
    const sorted = rows.map((row) => row.latency).sort((a, b) => a - b);
    const inTime = sorted.filter((seconds) => seconds <= GOAL).length / (sorted.length || 1);
    const told = [["median", 0.5], ["p95", 0.95], ["p99", 0.99]].map(
      ([name, share]) => [name, sorted.length ? duration(percentile(sorted, share)) : "–"],
    );
    // Rounded down: what was late once is not "100 %".
    told.push(["within 1 min", sorted.length ? `${Math.floor(inTime * 1000) / 10} %` : "–"]);
    fill(this.numbers, ...told.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    const text = `Latency of ${count(sorted.length, "raw frame")}: ${told.map((pair) => pair.join(" ")).join(", ")}`;
    this.plot.setAttribute("aria-label", text);
    this.draw(rows);
  }

  /** A dot for each frame: when it was acquired, how long it took (logarithmic). */
  draw(rows) {
    const { clientWidth: width, clientHeight: height } = this.plot;
    const scale = devicePixelRatio;
    if (!width) return;
    Object.assign(this.plot, { width: width * scale, height: height * scale });
    const pen = this.plot.getContext("2d");
    const colours = getComputedStyle(this.plot);
    const colour = (name) => colours.getPropertyValue(name);
    pen.scale(scale, scale);
    const times = rows.map((row) => row.acquired);
    const start = times.reduce((a, b) => Math.min(a, b), Infinity);
    const span = Math.max(600_000, Math.min(DAY, times.reduce((a, b) => Math.max(a, b), 0) - start));
    const [low, high] = [Math.log10(0.3), Math.log10(180)]; // s; what lies outside is drawn at the edge
    const y = (seconds) => {
      const share = (Math.log10(Math.max(seconds, 0.3)) - low) / (high - low);
      return height - 12 - Math.max(0, Math.min(1, share)) * (height - 16);
    };
    pen.font = `9px ${colours.fontFamily}`;
    for (const [seconds, name] of [[1, "1 s"], [10, "10 s"], [GOAL, "1 min"]]) {
      pen.strokeStyle = colour(seconds === GOAL ? "--warn" : "--line");
      pen.fillStyle = colour("--faint");
      pen.setLineDash(seconds === GOAL ? [4, 3] : []);
      pen.beginPath();
      pen.moveTo(30, Math.round(y(seconds)) + 0.5);
      pen.lineTo(width, Math.round(y(seconds)) + 0.5);
      pen.stroke();
      pen.fillText(name, 0, y(seconds) + 3);
    }
    if (!rows.length) return;
    pen.fillText(clock(start).slice(0, 5), 30, height - 1);
    pen.textAlign = "right";
    pen.fillText(`${clock(start + span).slice(0, 5)} UT`, width, height - 1);
    const [good, bad] = [colour("--good"), colour("--bad")];
    const dot = rows.length > 500 ? 2 : 3;
    pen.globalAlpha = rows.length > 500 ? 0.5 : 0.85;
    for (const row of rows) {
      pen.fillStyle = row.latency > GOAL ? bad : good;
      pen.fillRect(32 + ((row.acquired - start) / span) * (width - 36), y(row.latency) - dot / 2, dot, dot);
    }
  }

  /** @param {any} seen the answer of /v1/overview; @param {string | null} failed */
  overview(seen, failed = null) {
    const { sources, canary } = seen;
    const silent = sources.filter((source) => Date.now() - Date.parse(source.at) > 60_000);
    const away = sources.filter((source) => !source.connected || silent.includes(source));
    const paused = sources.filter((source) => source.paused);
    const bad = away.length > 0 || failed;
    this.sources.className = `sources ${sources.length ? (bad ? "bad" : paused.length ? "warn" : "good") : ""}`;
    const told = `${sources.length - away.length} of ${sources.length} connected${paused.length ? `, ${paused.length} paused` : ""}`;
    const summary = el("summary", {}, el("span", { class: "mark" }), "Sources ", el("b", {}, failed ?? told));
    const items = sources.map((source) => {
      const state = silent.includes(source) ? `no report for ${age((Date.now() - Date.parse(source.at)) / 1000)}` : source.connected ? (source.paused ? "paused" : "connected") : "not connected";
      const last = source.last_frame_at ? `, last frame ${clock(Date.parse(source.last_frame_at))} UT` : "";
      return el("li", {}, el("b", {}, source.name), ` ${source.instrument}: ${state}${last}`);
    });
    const isOpen = this.sources.querySelector("details")?.open;
    fill(this.sources, el("details", { class: "menu", open: isOpen }, summary, el("ul", {}, ...(items.length ? items : [el("li", {}, "No monitor has reported yet.")]))));
    const mark = el("span", { class: "mark" });
    if (!canary) {
      this.canary.className = "canary";
      return fill(this.canary, mark, "Canary ", el("b", {}, "none lately"));
    }
    const { available, acquired } = canary.timeline;
    const since = (Date.now() - Date.parse(canary.acquired)) / 1000;
    const took = available && (Date.parse(available) - Date.parse(acquired)) / 1000;
    const late = took ? took > GOAL : since > GOAL;
    this.canary.className = `canary ${late ? "bad" : took ? "good" : ""}`;
    fill(this.canary, mark, "Canary ", el("b", {}, took ? duration(took) : `on its way, ${canary.status.toLowerCase()}`), ` ${age(since)} ago`);
  }
}
