// One answer on its way: from the request to the last token.

import { answer, countTokens, Problem } from "./api.js";
import { path } from "./conversations.js";

/**
 * Fill `node` with the answer of its `model` to what stands before it, behind the text that it has already; its `state` says
 * how it ended. `changed` is called as text arrives. A conversation that outgrows the context goes on without its oldest part.
 */
export async function fill(conversation, node, { settings, contextShift, signal, changed }) {
  const messages = messagesTo(conversation, node);
  const begun = begin(node, settings);
  let first = 0;
  let isLeft = false;
  const leave = () => (isLeft = true); // Firefox breaks the connections of a page off before it leaves it
  addEventListener("beforeunload", leave); // no longer than needed: it may keep the page from being gone back to
  try {
    const asked = { model: node.model, messages, context_shift: contextShift, ...settings.request() };
    for await (const piece of answer(asked, signal)) {
      if ((piece.text || piece.thinking) && !first) first = performance.now();
      node.text += piece.text;
      if (piece.thinking) node.thinking = (node.thinking ?? "") + piece.thinking;
      if (begun.isRecorded) node.tokens.push(...piece.tokens);
      if (piece.finish === "length") node.ended = "length";
      if (piece.usage) note(conversation, node, piece.usage, first, begun.count);
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

/** What is said up to an answer, and what it has itself. */
function messagesTo(conversation, node) {
  const shown = path(conversation);
  const said = shown.slice(0, shown.indexOf(node) + (node.text ? 1 : 0));
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  return [...system, ...said.map(({ role, text }) => ({ role, content: text }))];
}

/**
 * Take what is known of the tokens of an answer that goes on: how many there are, where that is known, and whether each has its
 * probability. The token view shows all of an answer, or is not there.
 */
function begin(node, { probabilities }) {
  const count = node.text ? node.stats?.tokens ?? (node.tokens?.length || null) : 0;
  const isRecorded = !node.text || Boolean(probabilities && node.tokens?.length);
  if (!isRecorded) node.tokens = [];
  node.stats = null;
  return { count, isRecorded };
}

/**
 * Whether the model has not read all of a conversation: it reads half a context of one at the least then. How much it has read
 * for an answer that was stopped is not known.
 */
export async function isLongerThan(context, conversation, node) {
  if (!(conversation.used >= context / 2) && node.state !== "stopped") return false;
  return (await countTokens(node.model, messagesTo(conversation, node)).catch(() => 0)) > context;
}

function note(conversation, node, usage, first, begun) {
  const seconds = (performance.now() - first) / 1000;
  const rate = seconds > 0 ? Math.max(0, usage.completion_tokens - 1) / seconds : 0;
  if (begun !== null) node.stats = { tokens: begun + usage.completion_tokens, rate };
  conversation.used = usage.total_tokens;
}
