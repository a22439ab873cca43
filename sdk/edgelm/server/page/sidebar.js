// The list of conversations.

import { announce, button, byId, byTouch, element } from "./dom.js";
import { matches } from "./conversations.js";

const NARROW = matchMedia("(max-width: 48rem)"); // as in style.css
const DAY = 24 * 3600 * 1000;

export class Sidebar {
  /** @param {{open, rename, remove}} actions */
  constructor(actions) {
    this.actions = actions;
    this.conversations = [];
    this.current = null;
    byId("search").addEventListener("input", () => {
      this.render();
      const found = document.querySelectorAll("#conversations li").length;
      announce(found === 1 ? "1 conversation" : `${found || "No"} conversations`);
    });
    byId("open-sidebar").addEventListener("click", () => this.toggle(true));
    byId("close-sidebar").addEventListener("click", () => this.close());
    byId("sidebar").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.covers()) return;
      event.stopPropagation(); // else it would stop an answer
      this.close();
    });
    document.addEventListener("click", (event) => {
      const within = event.composedPath(); // a row that was clicked may be drawn anew by now
      if (this.covers() && !["sidebar", "open-sidebar"].some((id) => within.includes(byId(id)))) this.close();
    });
    NARROW.addEventListener("change", () => this.toggle(false));
  }

  /** On a narrow page the list lies over the conversation, which cannot be reached then. */
  toggle(shown) {
    byId("sidebar").classList.toggle("open", shown);
    byId("open-sidebar").setAttribute("aria-expanded", String(shown));
    byId("main").inert = this.covers();
    if (shown) byId(byTouch.matches ? "close-sidebar" : "search").focus(); // no keyboard over the list
  }

  covers() {
    return NARROW.matches && byId("sidebar").classList.contains("open");
  }

  close() {
    this.toggle(false);
    byId("open-sidebar").focus();
  }

  show(conversations, current) {
    this.conversations = [...conversations].sort((a, b) => b.updated - a.updated);
    this.current = current;
    this.render();
  }

  render() {
    const words = byId("search").value.trim();
    const found = words ? this.conversations.filter((conversation) => matches(conversation, words)) : this.conversations;
    const lists = new Map(); // age -> list
    for (const conversation of found) {
      const age = ageOf(conversation.updated);
      if (!lists.has(age)) lists.set(age, element("ul"));
      lists.get(age).append(this.row(conversation));
    }
    const shown = [...lists].flatMap(([age, list]) => [element("h2", {}, age), list]);
    const none = element("p", { class: "dim" }, words ? "Nothing found." : "No conversations yet.");
    const focused = document.activeElement?.closest("#conversations li");
    const place = focused && [...focused.children].indexOf(document.activeElement);
    byId("conversations").replaceChildren(...(shown.length ? shown : [none]));
    if (!focused) return;
    const again = [...document.querySelectorAll("#conversations li")].find((row) => row.dataset.id === focused.dataset.id);
    (again?.children[place] ?? byId("new-conversation")).focus({ preventScroll: true });
  }

  row(conversation) {
    const title = conversation.title || "New conversation";
    const isCurrent = conversation.id === this.current?.id;
    const current = isCurrent ? { "aria-current": "true" } : {};
    return element("li", { class: isCurrent ? "current" : "", "data-id": conversation.id },
      button(title, () => this.actions.open(conversation), { class: "open", dir: "auto", lang: "", title, ...current }),
      button("✎", () => this.actions.rename(conversation), { class: "act", label: `Rename ${title}` }),
      button("✕", () => this.actions.remove(conversation), { class: "act", label: `Delete ${title}` }));
  }
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last seven days";
  return new Date(time).toLocaleDateString(undefined, { year: "numeric", month: "long" });
}
