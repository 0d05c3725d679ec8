/** Colours: as the system has them, or light, or dark; kept in this browser. */

import { byId, write } from "./dom.js";

const THEMES = new Map([["auto", "◐"], ["light", "☀"], ["dark", "☾"]]);

/** @param {() => void} changed draws anew what is not drawn by style sheets */
export function wireTheme(changed) {
  const button = byId("theme");
  const root = document.documentElement;
  const show = (theme) => {
    root.dataset.theme = theme;
    write(button, THEMES.get(theme));
    button.setAttribute("aria-label", `Colours: ${theme}`);
    button.title = `Colours: ${theme}`;
    changed();
  };
  const kept = localStorage.getItem("koa-theme");
  show(THEMES.has(kept) ? kept : "auto");
  button.addEventListener("click", () => {
    const names = [...THEMES.keys()];
    const next = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    localStorage.setItem("koa-theme", next);
    show(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
