// One answer on its way: from the request to the last token.

import { answer, Problem } from "./api.js";
import { path } from "./conversations.js";

/**
 * Fill `node` with the answer of its `model` to what stands before it; its `state` says how it ended. `changed` is called as
 * text arrives.
 */
export async function fill(conversation, node, { settings, signal, changed }) {
  const shown = path(conversation);
  const before = shown.slice(0, shown.indexOf(node));
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const messages = [...system, ...before.map(({ role, text }) => ({ role, content: text }))];
  let first = 0;
  let isLeft = false;
  const leave = () => (isLeft = true); // Firefox breaks the connections of a page off before it leaves it
  addEventListener("beforeunload", leave); // no longer than needed: it may keep the page from being gone back to
  try {
    for await (const piece of answer({ model: node.model, messages, ...settings.request() }, signal)) {
      if ((piece.text || piece.thinking) && !first) first = performance.now();
      node.text += piece.text;
      if (piece.thinking) node.thinking = (node.thinking ?? "") + piece.thinking;
      node.tokens.push(...piece.tokens);
      if (piece.finish === "length") node.ended = "length";
      if (piece.usage) note(conversation, node, piece.usage, first);
      changed();
    }
    if (node.ended) node.state = node.ended;
    else delete node.state;
  } catch (error) {
    if (error.name === "AbortError") {
      node.state = "stopped";
      return;
    }
    if (!(error instanceof Problem)) console.error(error);
    node.state = isLeft ? "interrupted" : "broken";
    node.problem = error instanceof Problem ? error.message : "The page could not read the server's answer.";
    node.status = error.status ?? 0;
  } finally {
    removeEventListener("beforeunload", leave);
    delete node.ended;
  }
}

function note(conversation, node, usage, first) {
  const seconds = (performance.now() - first) / 1000;
  node.stats = { tokens: usage.completion_tokens, rate: seconds > 0 ? Math.max(0, usage.completion_tokens - 1) / seconds : 0 };
  conversation.used = usage.total_tokens;
}
