// The conversation on the page: one article a message.

import { button, byId, byTouch, copy, element } from "./dom.js";
import { isHere } from "./api.js";
import { MarkdownView } from "./markdown.js";
import { path, siblings } from "./conversations.js";
import { hideAlternatives, tokenView } from "./tokens.js";

const NEAR_THE_END = 80; // pixels

export class Thread {
  /** @param {{edit, regenerate, choose, retry}} actions  what the buttons below a message do */
  constructor(actions) {
    this.actions = actions;
    this.tokensShown = new Set(); // ids of the answers that show their tokens
    this.thinkingShown = new Set(); // and of those that show what was thought before them
    this.views = new Map(); // answer's id -> what updates it while it runs
    byId("scroll").addEventListener("scroll", () => this.follow());
    byId("to-end").addEventListener("click", () => this.scrollToEnd());
  }

  /** Show a conversation as it is: its end, or with `staying` what is seen of it already. */
  show(conversation, busy, { staying = false } = {}) {
    hideAlternatives();
    this.views.clear();
    const place = staying && !this.isAtEnd() ? byId("scroll").scrollTop : null;
    const active = document.activeElement;
    const focused = focusedControl();
    const editing = unfinishedEdit();
    const nodes = path(conversation);
    byId("thread").replaceChildren(...(nodes.length ? nodes.map((node) => this.message(conversation, node, busy)) : [welcome()]));
    const edited = editing && nodes.find(({ id }) => id === editing.id);
    if (edited) this.edit(edited, editing);
    if (edited && !editing.isFocused) active.focus();
    else if (focused && !edited) focusAgain(focused);
    if (place === null) this.scrollToEnd();
    else byId("scroll").scrollTop = place;
  }

  /** Show what a running answer has by now. */
  update(node) {
    const atEnd = this.isAtEnd();
    this.views.get(node.id)?.();
    if (atEnd) this.scrollToEnd();
    this.follow();
  }

  toggleTokens(conversation, node, busy) {
    if (!node.tokens?.length) return;
    if (!this.tokensShown.delete(node.id)) this.tokensShown.add(node.id);
    const article = document.getElementById(`message-${node.id}`);
    article.replaceWith(this.message(conversation, node, busy));
    document.getElementById(`message-${node.id}`).querySelector("[aria-pressed]")?.focus();
  }

  message(conversation, node, busy) {
    const own = node.role === "user";
    const text = element("div", { class: own ? "text" : "answer" });
    const article = element("article", {
      class: `message ${node.role}`, id: `message-${node.id}`, "aria-label": own ? "You" : node.model ?? "Model",
    }, text);
    if (own) text.textContent = node.text;
    else this.answer(node, text, article);
    if (node.state !== "running") article.append(this.below(conversation, node, busy));
    return article;
  }

  answer(node, text, article) {
    if (this.tokensShown.has(node.id) && node.state !== "running") {
      text.append(tokenView(node.tokens));
    } else {
      const view = new MarkdownView(text);
      const thinking = element("div");
      const folded = element("details", {
        class: "thinking", open: this.thinkingShown.has(node.id),
        on: { toggle: () => this.thinkingShown[folded.open ? "add" : "delete"](node.id) },
      }, element("summary", {}, "Thinking"), thinking);
      const show = () => {
        if (node.thinking && !folded.parentNode) text.before(folded);
        thinking.textContent = node.thinking ?? "";
        view.show(node.text);
        text.classList.toggle("waiting", node.state === "running");
        text.setAttribute("aria-busy", String(node.state === "running"));
      };
      this.views.set(node.id, show);
      show();
    }
    const said = STATES[node.state];
    if (said) article.append(this.problem(node, said(node)));
  }

  problem(node, text) {
    return element("div", { class: "problem", role: "alert" }, text, button("Try again", () => this.actions.retry(node)));
  }

  below(conversation, node, busy) {
    const own = node.role === "user";
    const alternatives = siblings(conversation, node);
    const place = alternatives.indexOf(node);
    const step = (by) => this.actions.choose(alternatives[place + by]);
    const copyButton = button("Copy", () => copy(node.text, copyButton));
    const switcher = alternatives.length < 2 ? [] : [
      button("‹", () => step(-1), { label: "The version before", disabled: busy || place === 0 }),
      element("span", { class: "branch" }, `${place + 1}/${alternatives.length}`),
      button("›", () => step(1), { label: "The next version", disabled: busy || place === alternatives.length - 1 }),
    ];
    const more = own
      ? [button("Edit", () => this.edit(node), { disabled: busy })]
      : [button("Regenerate", () => this.actions.regenerate(node), { disabled: busy })];
    if (node.tokens?.length) {
      const pressed = { "aria-pressed": String(this.tokensShown.has(node.id)) };
      more.push(button("Tokens", () => this.toggleTokens(conversation, node, busy), pressed));
    }
    return element("div", { class: "actions" }, ...switcher, ...more, ...(node.text ? [copyButton] : []), stats(node));
  }

  /** Turn a message into a field; what is written there becomes a new version beside the old one. */
  edit(node, { text = node.text, selection = [text.length, text.length] } = {}) {
    const article = document.getElementById(`message-${node.id}`);
    const unfinished = article.querySelector(".edit textarea");
    if (unfinished) {
      unfinished.focus();
      return;
    }
    const field = element("textarea", { value: text, dir: "auto", "aria-label": "Your message" });
    const before = [...article.childNodes];
    const focused = document.activeElement;
    const cancel = () => {
      article.replaceChildren(...before);
      focused.focus();
    };
    const send = () => (field.value.trim() ? this.actions.edit(node, field.value) : cancel());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !byTouch.matches) {
        event.preventDefault();
        send();
      }
    });
    article.replaceChildren(element("div", { class: "edit" }, field,
      element("div", { class: "row end" }, button("Cancel", cancel, { class: "quiet" }), button("Send", send, { class: "primary" }))));
    field.setSelectionRange(...selection);
    field.focus();
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = byId("scroll");
    return scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
  }

  scrollToEnd() {
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
    this.follow();
  }

  follow() {
    byId("to-end").hidden = this.isAtEnd();
  }
}

const STATES = {
  broken: (node) => node.problem,
  interrupted: () => "This answer was interrupted.",
};

function stats(node) {
  const parts = [];
  if (node.state === "stopped") parts.push("stopped");
  if (node.state === "length") parts.push("reached the longest answer");
  if (node.stats) parts.push(`${node.stats.tokens} tokens`, `${node.stats.rate.toFixed(1)} tokens/s`);
  if (node.model) parts.push(node.model);
  return parts.length ? element("span", { class: "stats" }, parts.join(" · ")) : null;
}

function welcome() {
  const where = isHere ? "What you write stays on this machine."
    : `What you write goes to ${location.hostname}, and is kept in this browser.`;
  return element("div", { class: "welcome" }, element("h2", {}, "What would you like to know?"), element("p", {}, where));
}

/** The message that is being edited, with what is written by now: it is drawn anew with the others. */
function unfinishedEdit() {
  const field = document.querySelector(".edit textarea");
  const id = field?.closest("article").id.replace("message-", "");
  const selection = [field?.selectionStart, field?.selectionEnd];
  return field && { id, text: field.value, selection, isFocused: document.activeElement === field };
}

const nameOf = (control) => control.getAttribute("aria-label") ?? control.textContent;

/** The control of a message that has the focus, by what finds it again when the message is drawn anew. */
function focusedControl() {
  const article = document.activeElement?.closest("#thread article");
  return article && { article: article.id, name: nameOf(document.activeElement) };
}

function focusAgain({ article, name }) {
  const controls = document.getElementById(article)?.querySelectorAll("button:enabled, [tabindex]") ?? [];
  const same = [...controls].find((control) => nameOf(control) === name);
  if (same) same.focus({ preventScroll: true });
  else if (!byTouch.matches) byId("question").focus();
}
