// The server's API, as any OpenAI client uses it.

import { forThisTab } from "./storage.js";

const KEY = "edgelm.key";
const OTHER_KEY = "The server does not take this key.";

/** Whether the server is on the machine that shows this page. */
export const isHere = /^(localhost|127\.[0-9.]+|\[::1\])$/.test(location.hostname);

/** What went wrong, in words for the person at the page. `status` is 0 where no answer came. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  forThisTab.setItem(KEY, key.trim());
}

async function request(path, options = {}) {
  const key = forThisTab.getItem(KEY);
  if (/[^!-~]/.test(key ?? "")) throw new Problem(OTHER_KEY, 401); // none has such characters, and no header can
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (response.status === 401) throw new Problem(key ? OTHER_KEY : "This server asks for a key.", 401);
  if (!response.ok) throw new Problem(await messageOf(response), response.status);
  return response;
}

async function messageOf(response) {
  const told = await response.json().then((body) => body?.error?.message, () => null);
  if (response.status === 413) return "This is more than the server takes. Shorten a message, or begin a new conversation.";
  if (response.status === 429) return "The server has too much to do right now. Try again in a moment.";
  return told ?? `The server answered with ${response.status}.`;
}

/** @returns {Promise<Array<{id: string, context_length?: number, context_shift?: ?number}>>} */
export async function models() {
  return (await (await request("v1/models")).json()).data;
}

/** @returns {Promise<string[]>} the names of what a model's chat template reads besides the conversation */
export async function templateVariables(model) {
  return (await (await request(`v1/models/${encodeURIComponent(model)}`)).json()).template_variables;
}

/** @returns {Promise<number>} how many tokens a conversation has for a model */
export async function countTokens(model, messages) {
  return (await (await post("tokenize", { model, messages })).json()).count;
}

function post(path, body, signal) {
  return request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}

/**
 * Ask for an answer, and yield it in pieces: {text, thinking, tokens, finish, usage}. A token is [text, logprob, alternatives],
 * an alternative [text, logprob].
 */
export async function* answer(body, signal) {
  const response = await post("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Problem(event.error.message);
    const choice = event.choices?.[0];
    finished ||= Boolean(choice?.finish_reason);
    yield {
      text: choice?.delta?.content ?? "",
      thinking: choice?.delta?.reasoning_content ?? "",
      tokens: (choice?.logprobs?.content ?? []).map((token) => [
        token.token, token.logprob, token.top_logprobs.map((other) => [other.token, other.logprob]),
      ]),
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
  if (!finished) throw new Problem("The connection broke off before the answer was complete.");
}

/** Yield the data of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection broke off before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
