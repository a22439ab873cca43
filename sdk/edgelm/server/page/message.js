// One message of the conversation. It is made once and brought up to date in place: what is read, selected or focused in it
// stays where it is while answers arrive and end.

import { announce, button, byTouch, copy, element, isComposing } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { siblings } from "./conversations.js";
import { tokenView } from "./tokens.js";

export class Message {
  /**
   * @param {object} node
   * @param {Thread} thread  its `actions` are what the buttons do; it knows whose tokens and thoughts are shown
   */
  constructor(node, thread) {
    this.node = node;
    this.thread = thread;
    this.isOwn = node.role === "user";
    this.view = null; // of the Markdown, while that is shown
    this.field = null; // while the message is edited
    this.heading = element("h2", { class: "hidden", id: `name-${node.id}` });
    this.text = element("div", { class: this.isOwn ? "text" : "answer", lang: "" });
    this.below = element("div");
    this.article = element("article", {
      class: `message ${node.role}`, id: `message-${node.id}`, "aria-labelledby": this.heading.id,
    }, this.heading, this.text, this.below);
  }

  show(conversation, busy) {
    this.conversation = conversation;
    this.busy = busy;
    this.update();
    const parts = this.partsBelow();
    const said = JSON.stringify(parts);
    if (said === this.said) return;
    this.said = said;
    this.below.replaceChildren(...this.problem(parts), ...this.controls(parts));
  }

  /** Show the text as it is by now. */
  update() {
    const { node, text } = this;
    write(this.heading, this.isOwn ? "You" : node.model ?? "Model");
    if (this.isOwn) text.textContent ||= node.text;
    else if (this.showsTokens() && node.state !== "running") this.showTokens();
    else this.showMarkdown();
  }

  showsTokens() {
    return Boolean(this.node.tokens?.length) && this.thread.tokensShown.has(this.node.id);
  }

  showTokens() {
    if (this.text.querySelector(".tokens")) return;
    this.view = null;
    this.folded?.remove();
    this.text.replaceChildren(tokenView(this.node.tokens));
  }

  showMarkdown() {
    const { node, text } = this;
    if (!this.view) {
      text.replaceChildren();
      this.view = new MarkdownView(text);
    }
    this.folded ??= this.thoughts();
    if (!node.thinking) this.folded.remove();
    else if (!this.folded.parentNode) text.before(this.folded);
    write(this.folded.lastChild, node.thinking ?? "");
    this.view.show(node.text);
    text.classList.toggle("waiting", node.state === "running");
    text.setAttribute("aria-busy", String(node.state === "running"));
  }

  thoughts() {
    const { node, thread: { thinkingShown } } = this;
    const folded = element("details", {
      class: "thinking", open: thinkingShown.has(node.id),
      on: { toggle: () => thinkingShown[folded.open ? "add" : "delete"](node.id) },
    }, element("summary", {}, "Thinking"), element("div", { lang: "" }));
    return folded;
  }

  /** What the line below depends on: it is drawn anew when that has changed. */
  partsBelow() {
    const { node, busy } = this;
    if (node.state === "running") return null;
    const versions = siblings(this.conversation, node);
    return {
      busy, place: versions.indexOf(node), versions: versions.map(({ id }) => id), problem: STATES[node.state]?.(node) ?? null,
      canGoOn: Boolean(!this.isOwn && node.state && node.text) && node.id === this.conversation.leaf,
      hasText: Boolean(node.text), hasTokens: Boolean(node.tokens?.length), showsTokens: this.showsTokens(), stats: stats(node),
    };
  }

  problem(parts) {
    if (!parts?.problem) return [];
    const again = button("Try again", () => this.thread.actions.retry(this.node));
    return [element("div", { class: "problem" }, parts.problem, again)];
  }

  controls(parts) {
    if (!parts) return [];
    const { node, thread: { actions } } = this;
    const disabled = parts.busy;
    const controls = this.versions(parts);
    if (!this.isOwn) controls.push(button("Regenerate", () => actions.regenerate(node), { disabled }));
    if (this.isOwn || parts.hasText) controls.push(button("Edit", () => this.edit(), { disabled }));
    if (parts.canGoOn) controls.push(button("Continue", () => actions.goOn(node), { disabled }));
    if (parts.hasTokens) {
      controls.push(button("Tokens", () => this.thread.toggleTokens(node), { "aria-pressed": String(parts.showsTokens) }));
    }
    const copyButton = button("Copy", () => copy(node.text, copyButton));
    if (parts.hasText) controls.push(copyButton);
    if (parts.stats) controls.push(element("span", { class: "stats" }, parts.stats));
    return [element("div", { class: "actions" }, ...controls)];
  }

  versions({ busy, place, versions }) {
    if (versions.length < 2) return [];
    const step = (by) => {
      this.thread.actions.choose(this.conversation.nodes[versions[place + by]]);
      announce(`Version ${place + by + 1} of ${versions.length}`);
    };
    return [
      button("‹", () => step(-1), { label: "The version before", disabled: busy || place === 0 }),
      element("span", { class: "branch" }, `${place + 1}/${versions.length}`),
      button("›", () => step(1), { label: "The next version", disabled: busy || place === versions.length - 1 }),
    ];
  }

  /** Turn the message into a field; what is written there becomes a new version beside the old one. */
  edit() {
    if (this.field) {
      this.field.focus();
      return;
    }
    const { node, article, text, below } = this;
    const field = element("textarea", { value: node.text, dir: "auto", lang: "", "aria-label": this.isOwn ? "Your message" : "Answer" });
    const focused = document.activeElement;
    const form = element("div", { class: "edit" }, field, element("div", { class: "row end" },
      button("Cancel", () => cancel(), { class: "quiet" }), button(this.isOwn ? "Send" : "Keep", () => send(), { class: "primary" })));
    const cancel = () => {
      this.field = null;
      form.replaceWith(text, below);
      focused.focus();
      if (document.activeElement !== focused || focused === document.body) this.thread.focusAgain({ article, name: "Edit" });
    };
    const send = () => (field.value.trim() ? this.thread.actions.edit(node, field.value) : cancel());
    field.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Escape") {
        event.stopPropagation(); // else it would stop an answer
        cancel();
      }
      if (event.key === "Enter" && !event.shiftKey && !byTouch.matches && this.isOwn) { // an answer has many lines
        event.preventDefault();
        send();
      }
    });
    this.field = field;
    text.remove();
    below.replaceWith(form);
    field.setSelectionRange(field.value.length, field.value.length);
    field.focus();
  }
}

/** Write a text in the place of another: what they begin with alike stays there, as it may be read or selected. */
function write(target, text) {
  const shown = target.textContent;
  if (text === shown) return;
  if (shown && text.startsWith(shown)) target.firstChild.appendData(text.slice(shown.length));
  else target.textContent = text;
}

const STATES = {
  broken: (node) => node.problem,
  interrupted: () => "This answer was interrupted.",
};

function stats(node) {
  const parts = [];
  if (node.state === "stopped") parts.push("stopped");
  if (node.state === "edited") parts.push("edited");
  if (node.state === "length") parts.push("reached the longest answer");
  if (node.isCut) parts.push("the oldest part was left out");
  if (node.stats) parts.push(`${node.stats.tokens} tokens`, `${node.stats.rate.toFixed(1)} tokens/s`);
  if (node.model) parts.push(node.model);
  return parts.join(" · ");
}
