// Building elements. Text always becomes text nodes: nothing in this page ever parses HTML.

/**
 * @param {string} tag
 * @param {Record<string, any>} properties  properties of the element; `class`, `on` (listeners) and `aria…` / `data-…`
 *     attributes are told apart by their names
 * @param {...(Node|string|null|undefined)} children
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    else if (name === "role" || name.startsWith("aria-") || name.startsWith("data-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** @param {string} id */
export function byId(id) {
  return document.getElementById(id);
}

/** Whether fingers point here: a focused field brings up a keyboard then, and its Enter is the only way to a new line. */
export const byTouch = matchMedia("(hover: none) and (pointer: coarse)");

/** A button with a text, or with a sign and a name that is read aloud. */
export function button(text, listener, { label, ...properties } = {}) {
  const named = label ? { "aria-label": label, title: label } : {};
  return element("button", { type: "button", on: { click: listener }, ...named, ...properties }, text);
}

/** Make these the children of `target`; those that are there already stay where they are, with focus and selection. */
export function arrange(target, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...target.childNodes]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (target.childNodes[index] !== node) target.insertBefore(node, target.childNodes[index] ?? null);
  });
}

/** Let a node be as another; what they begin with alike stays, with what is selected in it. Returns the one that is shown. */
export function become(shown, wanted) {
  if (!isAlike(shown, wanted)) {
    shown.replaceWith(wanted);
    return wanted;
  }
  if (shown.nodeType === Node.TEXT_NODE) {
    const [text, next] = [shown.data, wanted.data]; // once: a browser hands each reader a string of its own
    let same = 0;
    while (same < text.length && text[same] === next[same]) same += 1;
    if (text !== next) shown.replaceData(same, text.length - same, next.slice(same));
    return shown;
  }
  const [before, after] = [[...shown.childNodes], [...wanted.childNodes]];
  for (const child of before.slice(after.length)) child.remove();
  after.forEach((child, index) => (index < before.length ? become(before[index], child) : shown.append(child)));
  return shown;
}

/** Whether two nodes differ in what stands in them alone. What a control does, and whether it is checked, is not seen. */
function isAlike(node, other) {
  if (node.nodeName !== other.nodeName || ["BUTTON", "INPUT"].includes(node.nodeName)) return false;
  return node.nodeType === Node.TEXT_NODE || node.cloneNode().isEqualNode(other.cloneNode());
}

/** Whether a key belongs to a text that is still being composed. Safari tells it by the key's code alone. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

const SAID_FOR = 5000; // milliseconds: what was said is no part of the page that is read

/**
 * Tell a screen reader what happened. Where it is told has no role: while messages are drawn, Orca takes what comes into a
 * status for noise, and into a live region without one not.
 */
export function announce(text) {
  const said = element("p", {}, text); // a new element each time: the same text again is said again
  byId("status").replaceChildren(said);
  setTimeout(() => said.remove(), SAID_FOR);
}

/** Copy text, and say on the button that it was done. */
export async function copy(text, pressed) {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https, browsers offer the clipboard on this machine only; a selection can be copied everywhere.
    const area = element("textarea", { value: text, class: "hidden" });
    document.body.append(area);
    area.select();
    if (!document.execCommand("copy")) said = "Not copied";
    area.remove();
    pressed.focus();
  }
  pressed.dataset.label ??= pressed.textContent; // a second press finds what was said there
  pressed.textContent = said;
  announce(said);
  setTimeout(() => (pressed.textContent = pressed.dataset.label), 1200);
}
