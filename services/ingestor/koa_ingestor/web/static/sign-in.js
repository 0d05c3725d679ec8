/** Signing in and out: a token, kept in this tab. */

import { token } from "./api.js";
import { byId } from "./dom.js";

/** @param {() => void} changed somebody else looks now */
export function wireSignIn(changed) {
  const dialog = byId("sign-in");
  const done = (value) => {
    if (value === "in") token.set(byId("token").value.trim());
    if (value === "out") token.set("");
    byId("token").value = "";
    dialog.close();
    if (value !== "no") changed();
  };
  byId("who").addEventListener("click", () => dialog.showModal());
  for (const button of dialog.querySelectorAll("button[type=button]")) button.addEventListener("click", () => done(button.value));
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    done("in");
  });
}

/** Ask for a token, as the one at hand is none. */
export function askForToken() {
  const dialog = byId("sign-in");
  if (!dialog.open) dialog.showModal();
}
