/** Making elements; text always becomes text nodes, never markup. */

/**
 * @param {string} name of the element
 * @param {Record<string, any>} [given] attributes; functions are listeners, false and null are left out
 * @param {...(Node | string | number | null | undefined | false)} children
 */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...shown(children));
  return made;
}

/** Put other children into an element. */
export function fill(element, ...children) {
  element.replaceChildren(...shown(children));
}

/** Write a text, if it is another one: what does not change is not laid out again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @returns {HTMLElement} the element of this id, which the page has */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** Do something once in the next frame, however often it is asked for. */
export function oncePerFrame(act) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    const run = () => {
      if (!asked) return;
      asked = false;
      act();
    };
    requestAnimationFrame(run);
    if (document.hidden) setTimeout(run, 1000); // no frames are drawn then
  };
}

function shown(children) {
  return children
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}
