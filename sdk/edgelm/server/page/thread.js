// The conversation on the page: one article a message.

import { arrange, byId, byTouch, element } from "./dom.js";
import { isHere } from "./api.js";
import { path } from "./conversations.js";
import { Message } from "./message.js";
import { hideAlternatives } from "./tokens.js";

const NEAR_THE_END = 80; // pixels
// A control that is gone or disabled once it was pressed -> which has the focus then.
const NEXT = { "The version before": "The next version", "The next version": "The version before", Keep: "Edit" };

export class Thread {
  /** @param {{edit, regenerate, retry, goOn, choose}} actions  what the buttons below a message do */
  constructor(actions) {
    this.actions = actions;
    this.tokensShown = new Set(); // ids of the answers that show their tokens
    this.thinkingShown = new Set(); // and of those that show what was thought before them
    this.messages = new Map(); // node -> its Message, of what is shown
    this.isLeft = false; // whether somebody went up from the end, by however little
    this.seen = { top: 0, height: 0 }; // where the conversation was scrolled to, and how much of it could be seen
    byId("scroll").addEventListener("scroll", () => this.scrolled());
    new ResizeObserver(() => this.resized()).observe(byId("scroll"));
    byId("to-end").addEventListener("click", () => this.scrollToEnd());
  }

  /** Show a conversation as it is: its end, or with `staying` what is seen of it already. */
  show(conversation, busy, { staying = false } = {}) {
    hideAlternatives();
    const place = staying && !this.follows() ? byId("scroll").scrollTop : null;
    const focused = focusedControl();
    this.messages = new Map(path(conversation).map((node) => [node, this.messages.get(node) ?? new Message(node, this)]));
    const messages = [...this.messages.values()];
    for (const message of messages) message.show(conversation, busy);
    arrange(byId("thread"), messages.length ? messages.map(({ article }) => article) : [welcome()]);
    if (focused && !document.activeElement.closest("#thread")) this.focusAgain(focused);
    if (place === null) this.scrollToEnd();
    else byId("scroll").scrollTop = place;
  }

  /** Show what a running answer has by now. */
  update(node) {
    const follows = this.follows();
    this.messages.get(node)?.update();
    if (follows) this.scrollToEnd();
    this.offerEnd();
  }

  toggleTokens(node) {
    if (!node.tokens?.length) return;
    if (!this.tokensShown.delete(node.id)) this.tokensShown.add(node.id);
    const message = this.messages.get(node);
    message.show(message.conversation, message.busy);
    message.below.querySelector("[aria-pressed]")?.focus();
  }

  edit(node) {
    this.messages.get(node).edit();
  }

  /** Focus the control of that name, of this article or of what is in its place now. */
  focusAgain({ article, place, name }) {
    const there = article.isConnected ? article : byId("thread").children[place];
    const controls = [...(there?.querySelectorAll("button:enabled, summary, a, [tabindex]") ?? [])];
    const named = (wanted) => controls.find((control) => nameOf(control) === wanted);
    const found = named(name) ?? named(NEXT[name]);
    if (found) found.focus({ preventScroll: true });
    else if (!byTouch.matches) byId("question").focus();
  }

  /** Whether the end is what is read: new text moves it up then. */
  follows() {
    this.look(); // the event of a scroll may not have come yet
    return !this.isLeft && this.isAtEnd();
  }

  isAtEnd(height = byId("scroll").clientHeight) {
    const { scrollHeight, scrollTop } = byId("scroll");
    return scrollHeight - scrollTop - height < NEAR_THE_END;
  }

  /** See where it was scrolled to: up, by however little, is away from the end. */
  look() {
    const { scrollHeight, scrollTop, clientHeight } = byId("scroll");
    if (scrollHeight - scrollTop - clientHeight <= 1) this.isLeft = false; // enlarged, it is counted in parts of a pixel
    else if (scrollTop < this.seen.top) this.isLeft = true;
    this.seen.top = scrollTop;
  }

  scrolled() {
    this.look();
    this.offerEnd();
  }

  /** The end stays where it is read, though the question grows or a keyboard comes up. */
  resized() {
    if (!this.isLeft && this.isAtEnd(this.seen.height)) this.scrollToEnd();
    this.seen.height = byId("scroll").clientHeight;
    this.offerEnd();
  }

  scrollToEnd() {
    this.isLeft = false;
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
    this.seen.top = byId("scroll").scrollTop; // one that comes before this one's event is measured against it
    this.offerEnd();
  }

  offerEnd() {
    const button = byId("to-end");
    const wasFocused = document.activeElement === button;
    button.hidden = this.isAtEnd();
    if (button.hidden && wasFocused) byId("scroll").focus({ preventScroll: true });
  }
}

function welcome() {
  const where = isHere ? "What you write stays on this machine."
    : `What you write goes to ${location.hostname}, and is kept in this browser.`;
  return element("div", { class: "welcome" }, element("h2", {}, "What would you like to know?"), element("p", {}, where));
}

const nameOf = (control) => control.getAttribute("aria-label") ?? control.textContent;

/** The control of a message that has the focus, by what finds it again when it is drawn anew. */
function focusedControl() {
  const focused = document.activeElement?.closest("#thread article") && document.activeElement;
  if (!focused) return null;
  const article = focused.closest("article");
  return { article, place: [...byId("thread").children].indexOf(article), name: nameOf(focused) };
}
