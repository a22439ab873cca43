// The token view: an answer's tokens, coloured by their probability, with what else could have stood there.

import { element } from "./dom.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(Math.exp(logprob) < 0.001 ? 3 : 1)} %`;

/** @param {Array<[string, number, Array<[string, number]>]>} tokens */
export function tokenView(tokens) {
  const mean = tokens.reduce((sum, [, logprob]) => sum + logprob, 0) / tokens.length;
  const legend = element("p", { class: "legend" }, "unsure", element("span", { class: "scale", "aria-hidden": "true" }), "sure",
    element("span", {}, `· ${tokens.length} tokens, perplexity ${Math.exp(-mean).toFixed(2)}`));
  // With a listbox, a screen reader leaves the arrow keys to the page.
  const list = element("div", {
    class: "tokens", role: "listbox", lang: "", "aria-orientation": "horizontal", "aria-label": "Tokens with their probabilities",
  });
  tokens.forEach((token, index) => list.append(tokenElement(token, index === 0)));
  list.addEventListener("keydown", (event) => move(event, list));
  return element("div", {}, legend, list);
}

function tokenElement([text, logprob, alternatives], first) {
  const show = () => showAlternatives(node, text, logprob, alternatives);
  const node = element("span", {
    class: "token", role: "option", tabIndex: first ? 0 : -1, "aria-selected": String(first), "aria-label": `${nameOf(text)}, ${percent(logprob)}`,
    on: { mouseenter: show, focus: show, click: show, mouseleave: hideAlternatives, blur: hideAlternatives },
  }, visible(text));
  node.style.setProperty("--p", Math.exp(logprob).toFixed(4));
  return node;
}

/** One stop for the Tab key; the arrows go from token to token. */
function move(event, list) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const next = step && list.children[[...list.children].indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  for (const [token, isNext] of [[document.activeElement, false], [next, true]]) {
    token.tabIndex = isNext ? 0 : -1;
    token.setAttribute("aria-selected", String(isNext));
  }
  next.focus();
}

/** Half a character, as bytes between tokens, comes as U+FFFD or as nothing. */
function visible(text) {
  return text === "" ? "·" : text.replace(/\n/g, "↵\n");
}

function nameOf(text) {
  return text.trim() || (text.includes("\n") ? "line break" : text ? "space" : "part of a character");
}

function showAlternatives(node, text, logprob, alternatives) {
  hideAlternatives();
  const rows = alternatives.some(([other]) => other === text) ? alternatives : [[text, logprob], ...alternatives];
  const box = element("div", { id: "alternatives", role: "tooltip" }, element("table", {}, element("tbody", {},
    ...rows.map(([other, value]) => {
      const bar = element("span");
      bar.style.width = `${100 * Math.exp(value)}%`;
      return element("tr", { class: other === text ? "chosen" : "" },
        element("td", {}, other.replace(/\n/g, "↵").replace(/ /g, "␣") || "·"), element("td", { class: "meter" }, bar),
        element("td", {}, percent(value)));
    }))));
  document.querySelector("main").append(box);
  node.classList.add("shown");
  node.setAttribute("aria-describedby", box.id);
  const { left, top, bottom } = node.getClientRects()[0];
  box.style.left = `${Math.max(8, Math.min(left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${bottom + 6 + box.offsetHeight < innerHeight ? bottom + 6 : top - box.offsetHeight - 6}px`;
}

/** @returns {boolean} whether any were shown */
export function hideAlternatives() {
  const box = document.getElementById("alternatives");
  box?.remove();
  for (const node of document.querySelectorAll(".token.shown")) {
    node.classList.remove("shown");
    node.removeAttribute("aria-describedby");
  }
  return box !== null;
}
