/** The keyboard: vi's letters and the arrows, and a way out of everything. */

import { byId } from "./dom.js";

const EVERYWHERE = new Set(["j", "k", "/", "?", "x", "Escape"]);
const MOVES = new Set(["j", "k", "ArrowDown", "ArrowUp"]);

/**
 * @param {Object} page
 * @param {import("./table.js").Table} page.table
 * @param {import("./detail.js").Detail} page.detail
 * @param {() => import("./choice.js").Choice} page.chosen
 * @param {(change: Partial<import("./choice.js").Choice>, isStep?: boolean) => void} page.choose
 */
export function listenToKeys({ table, detail, chosen, choose }) {
  const screen = () => Math.floor(table.body.clientHeight / table.height);
  const pick = () => table.activeRow && table.pick(table.active);
  const acts = {
    j: () => table.move(1), ArrowDown: () => table.move(1),
    k: () => table.move(-1), ArrowUp: () => table.move(-1),
    PageDown: () => table.move(screen()), PageUp: () => table.move(-screen()),
    Home: () => table.move(-Infinity), End: () => table.move(Infinity),
    Enter: () => table.activeRow && (choose({ frame: table.activeRow.id }, !chosen().frame), detail.title?.focus()),
    x: pick, " ": pick,
    "/": () => byId("search").focus(),
    "?": () => byId("keys").showModal(),
    Escape: leave,
  };

  function leave() {
    const menu = document.querySelector("details.menu[open]");
    if (menu) menu.open = false;
    else if (chosen().frame) choose({ frame: null }, true);
    else if (chosen().q) {
      byId("search").value = "";
      choose({ q: "" });
    } else table.grid.focus();
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const { target, key } = event;
    const isTyping = target.matches("input:not([type=checkbox]), select, textarea");
    if (isTyping && key !== "Escape") return;
    const inList = target === table.grid || target === document.body;
    if (!acts[key] || !(inList || EVERYWHERE.has(key))) return;
    event.preventDefault();
    if (isTyping) target.blur();
    acts[key]();
    if (!MOVES.has(key)) return;
    if (target !== table.grid && !byId("detail").contains(target)) table.grid.focus();
    if (chosen().frame && table.activeRow) choose({ frame: table.activeRow.id }); // the detail view follows
  });
}
