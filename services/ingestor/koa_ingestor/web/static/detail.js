/** The detail view of one frame. */

import { get, of, save } from "./api.js";
import { el, fill, write } from "./dom.js";
import { rowOf } from "./frames.js";
import * as previews from "./previews.js";
import { timeline } from "./timeline.js";
import { clock, codeInWords, count, duration, size, STATES, stateOf, whereabouts } from "./words.js";

const CARDS = 400; // cards of a header that are shown at once; a search finds all

export class Detail {
  /** @param {HTMLElement} root @param {{close: () => void, fail: (text: string) => void, kin: (koaid: string) => any[], open: (id: string) => void}} told */
  constructor(root, told) {
    Object.assign(this, { root, told });
    this.frame = null;
  }

  /** Show a frame; called again as it changes. @param {import("./frames.js").Frame} frame */
  show(frame) {
    const isAnother = this.frame?.frame_id !== frame.frame_id;
    const isNewVersion = this.frame?.version !== frame.version;
    this.frame = frame;
    this.row = rowOf(frame);
    this.root.hidden = false;
    if (isAnother) this.build();
    this.update();
    if (isAnother || isNewVersion) {
      this.image();
      this.header();
    }
    if (isAnother || this.status !== frame.status) this.history();
    this.status = frame.status;
  }

  close() {
    this.root.hidden = true;
    this.frame = null;
    this.root.replaceChildren();
  }

  build() {
    const section = (title, name, isOpen = true) => {
      const body = el("div", { class: name });
      this[`in_${name}`] = body;
      return el("details", { open: isOpen, class: `part p-${name}` }, el("summary", {}, el("h3", {}, title)), body);
    };
    this.title = el("h2", { tabindex: "-1" });
    this.why = el("p", { class: "why" });
    this.actions = el("p", { class: "actions" });
    this.search = el("input", { type: "search", placeholder: "Search keyword, value, comment", "aria-label": "Search the header", input: () => this.cards() });
    fill(this.root,
      el("header", {}, this.title, el("button", { type: "button", class: "close", "aria-label": "Close the detail view", click: this.told.close }, "×")),
      this.why, this.actions,
      el("div", { class: "beside" }, section("Preview", "image"), section("Facts", "facts")),
      section("Other levels", "kin"),
      section("Timeline", "way"),
      section("Findings", "findings"),
      section("Products", "products"),
      section("Header", "header"),
      section("Who said what", "history", false));
    this.root.scrollTop = 0;
  }

  update() {
    const { frame, row } = this;
    this.root.setAttribute("aria-label", `Frame ${row.name}`);
    this.root.dataset.state = row.state;
    write(this.title, row.level ? `${row.name}, level ${row.level}` : row.name);
    const where = whereabouts(frame);
    const took = row.latency === null ? "" : `${duration(row.latency)} after it was written`;
    fill(this.why, el("span", { class: "mark" }), el("b", {}, STATES.get(row.state)), ` ${[where, took].filter(Boolean).join(", ")}`);
    const fits = frame.products?.find((product) => product.role === "fits");
    const isThere = row.open && frame.version;
    fill(this.actions,
      isThere && fits && this.button(`Download FITS, ${size(fits.size)}`, of(frame, "file", frame.version), fits.name),
      !row.open && el("span", { class: "faint" }, "Proprietary: its file, preview and header need a token that names its program."));
    fill(this.in_way, timeline(frame));
    this.facts();
    this.findings();
    this.products();
    this.kin();
  }

  /** The raw frame of a product, the products of a raw frame; each opens. */
  kin() {
    const { frame, row } = this;
    const known = frame.koaid && row.open ? this.told.kin(frame.koaid) : [];
    const others = (known.length > 1 ? known : (frame.links ?? [])).filter((one) => one.level !== frame.level);
    this.root.querySelector(".p-kin").hidden = !others.length;
    fill(this.in_kin, el("ul", {}, ...others.map((one) =>
      el("li", { "data-state": stateOf(one.status) },
        el("span", { class: "mark" }),
        el("button", { type: "button", click: () => this.told.open(one.frame_id) }, one.level ? `Level ${one.level} products` : "Raw frame"),
        ` ${STATES.get(stateOf(one.status))}`,
        el("span", { class: "faint" }, [one.pipeline && ` by ${one.pipeline}`, one.version > 1 && ` version ${one.version}`].filter(Boolean).join(","))))));
  }

  button(text, path, name) {
    const act = async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      await save(path, name).catch((error) => this.told.fail(`${name}: ${error.message}`));
      button.disabled = false;
    };
    return el("button", { type: "button", click: act, "aria-label": `Download ${name}` }, text);
  }

  facts() {
    const { frame, row } = this;
    const core = frame.metadata ?? {};
    const { program } = frame;
    const degrees = (value) => (typeof value === "number" ? `${value.toFixed(5)}°` : "");
    const facts = [
      ["Instrument", frame.instrument], ["Type", row.type], ["Target", row.target],
      ["RA, Dec", [degrees(core.ra), degrees(core.dec)].filter(Boolean).join(", ")],
      ["Exposure", row.exposure === null ? "" : `${row.exposure} s`], ["Filter", core.filter],
      ["Program", program?.semid], ["PI", [program?.pi, program?.institution].filter(Boolean).join(", ")], ["Title", program?.title],
      ["Public from", program?.release_date?.slice(0, 10)],
      ["Acquired", `${new Date(row.acquired).toISOString().replace("T", " ").replace("Z", "")} UT`],
      ["File", frame.path], ["Level, version", [frame.level, frame.version ?? "none yet"].join(", ")],
      ["Reduced by", frame.pipeline], ["How announced", frame.origin], ["frame_id", frame.frame_id],
    ];
    const told = facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
    fill(this.in_facts, el("dl", {}, ...told));
  }

  findings() {
    const { findings } = this.frame;
    const items = findings.map((found) =>
      el("li", { "data-severity": found.severity },
        el("b", {}, codeInWords(found.code)), " ", el("code", {}, found.code),
        found.message && el("span", { class: "message" }, found.message), el("span", { class: "faint" }, ` at ${found.step}`)));
    this.root.querySelector(".p-findings").hidden = !items.length;
    fill(this.in_findings, el("ul", {}, ...items));
  }

  products() {
    const { frame, row } = this;
    const products = frame.products ?? [];
    const lines = products.map((product) =>
      el("tr", {},
        el("th", { scope: "row" }, row.open && frame.version ? this.button(product.name, of(frame, `products/${encodeURIComponent(product.name)}`, frame.version), product.name) : product.name),
        el("td", {}, size(product.size)),
        el("td", { title: product.sha256 ?? "" }, el("code", {}, product.sha256?.slice(0, 12) ?? ""))));
    this.root.querySelector(".p-products").hidden = !products.length;
    fill(this.in_products, el("table", {},
      el("thead", {}, el("tr", {}, ...["Product", "Size", "SHA-256"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...lines)));
  }

  async image() {
    const { row } = this;
    const part = this.root.querySelector(".p-image");
    part.hidden = !previews.has(row);
    fill(this.in_image);
    if (part.hidden) return;
    const url = await previews.preview(row);
    if (this.row.id !== row.id) return;
    const zoom = (event) => event.currentTarget.classList.toggle("whole");
    fill(this.in_image, url
      ? el("button", { type: "button", class: "zoom", "aria-label": "Preview; in its full size, and back", click: zoom }, el("img", { src: url, alt: `Preview of ${row.name}` }))
      : el("p", { class: "faint" }, "The preview could not be fetched."));
  }

  async header() {
    const { row } = this;
    const part = this.root.querySelector(".p-header");
    part.hidden = !(row.open && row.frame.version);
    this.found = [];
    if (part.hidden) return;
    fill(this.in_header, el("p", { class: "faint" }, "Loading…"));
    try {
      const cards = await get(of(row.frame, "header", row.frame.version));
      if (this.row.id !== row.id) return;
      this.found = cards.map((card) => ({ card, text: card.join(" ").toLowerCase() }));
      this.list = el("tbody");
      this.told_cards = el("p", { class: "faint", role: "status" });
      fill(this.in_header, this.search, this.told_cards, el("table", { class: "cards" }, this.list));
      this.cards();
    } catch (error) {
      fill(this.in_header, el("p", { class: "faint" }, `The header could not be fetched: ${error.message}`));
    }
  }

  cards() {
    const wanted = this.search.value.toLowerCase().trim();
    const matching = this.found.filter(({ text }) => text.includes(wanted));
    const some = matching.slice(0, CARDS);
    const value = (given) => (given === true ? "T" : given === false ? "F" : given);
    fill(this.list, ...some.map(({ card: [keyword, given, comment] }) =>
      el("tr", {}, el("th", { scope: "row" }, keyword), el("td", {}, value(given)), el("td", { class: "faint" }, comment))));
    const more = some.length < matching.length ? `, the first ${CARDS} are shown` : "";
    write(this.told_cards, `${count(matching.length, "card")}${more}`);
  }

  async history() {
    const { frame } = this;
    const events = await get(of(frame, "timeline")).catch(() => []);
    if (this.frame?.frame_id !== frame.frame_id) return;
    fill(this.in_history, el("ol", {}, ...events.map((event) =>
      el("li", {}, el("time", { datetime: event.at }, clock(Date.parse(event.at))), ` ${event.service}: ${event.status} `, el("span", { class: "faint" }, event.step)))));
  }
}
