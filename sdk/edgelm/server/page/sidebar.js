// The list of conversations.

import { button, byId, element } from "./dom.js";
import { matches } from "./conversations.js";

const DAY = 24 * 3600 * 1000;

export class Sidebar {
  /** @param {{open, rename, remove}} actions */
  constructor(actions) {
    this.actions = actions;
    this.conversations = [];
    this.current = null;
    byId("search").addEventListener("input", () => this.render());
    byId("open-sidebar").addEventListener("click", () => this.toggle(true));
    byId("close-sidebar").addEventListener("click", () => this.toggle(false));
  }

  /** On a narrow page the list lies over the conversation. */
  toggle(shown) {
    byId("sidebar").classList.toggle("open", shown);
    if (shown) byId("search").focus();
  }

  show(conversations, current) {
    this.conversations = [...conversations].sort((a, b) => b.updated - a.updated);
    this.current = current;
    this.render();
  }

  render() {
    const words = byId("search").value.trim();
    const found = words ? this.conversations.filter((conversation) => matches(conversation, words)) : this.conversations;
    const rows = [];
    let heading = null;
    for (const conversation of found) {
      const age = ageOf(conversation.updated);
      if (age !== heading) rows.push(element("h2", {}, (heading = age)));
      rows.push(this.row(conversation));
    }
    if (!rows.length) rows.push(element("li", { class: "dim" }, words ? "Nothing found." : "No conversations yet."));
    byId("conversations").replaceChildren(...rows);
  }

  row(conversation) {
    const title = conversation.title || "New conversation";
    const current = conversation.id === this.current?.id ? { "aria-current": "true" } : {};
    return element("li", current,
      button(title, () => this.actions.open(conversation), { class: "open", title }),
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
