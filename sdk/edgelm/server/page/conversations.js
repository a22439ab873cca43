// Conversations: trees of messages, kept in this browser. An edited message or a second answer is a sibling of the first.
//
// conversation: {id, title, created, updated, system, leaf, nodes, and titleAt and systemAt: when somebody changed those};
// node: {id, parent, role, text, and for an answer thinking (what was thought before it), tokens, stats, isCut (whether the
// model has not read the oldest part of the conversation), goesOn (whether it was asked for behind a text that it had), model,
// state}, where state is "running", "stopped", "edited", "length", "broken", "interrupted" or absent, and `problem` says why
// it is broken.

const STORE = "conversations";
const CHANGED = { title: "titleAt", system: "systemAt" }; // a field that two tabs may change -> when that was
const opened = open();

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("edgelm", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inStore(mode, work) {
  const database = await opened;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
  });
}

export async function all() {
  const found = await inStore("readonly", (store) => store.getAll());
  return found.map(atRest).sort((a, b) => b.updated - a.updated);
}

/** No answer of a conversation that comes from elsewhere is on its way here. */
function atRest(conversation) {
  for (const node of Object.values(conversation.nodes)) if (node.state === "running") node.state = "interrupted";
  return atItsEnd(conversation);
}

/** What is shown goes on to an end: messages of another tab may follow what this one showed last. */
function atItsEnd(conversation) {
  const shown = conversation.nodes[conversation.leaf];
  if (shown) choose(conversation, shown);
  return conversation;
}

/** Change a field; of two tabs that do, the later one counts, though the clock was set back. */
export function set(conversation, field, value) {
  const at = CHANGED[field];
  conversation[field] = value;
  conversation[at] = Math.max(Date.now(), (conversation[at] ?? 0) + 1);
}

/** The fields that were changed later in `other`. */
function changedIn(other, own) {
  const later = Object.entries(CHANGED).filter(([, at]) => (other[at] ?? 0) > (own[at] ?? 0));
  return Object.fromEntries(later.flat().map((name) => [name, other[name]]));
}

/** Messages that another tab has added since stay: none is ever taken out of a conversation. */
export async function save(conversation) {
  await inStore("readwrite", (store) => {
    const kept = store.get(conversation.id);
    kept.onsuccess = () => {
      const other = kept.result ?? { nodes: {} };
      Object.assign(conversation, changedIn(other, conversation));
      store.put({ ...conversation, nodes: joinedNodes(conversation.nodes, other.nodes) });
    };
    return kept;
  });
}

/**
 * All messages of a conversation that two tabs have. An answer that failed here, or was on its way when this page was
 * opened, may have come to its end in the other tab since; one that can go on may have done so there.
 */
function joinedNodes(own, others) {
  const nodes = { ...others, ...own };
  for (const [id, node] of Object.entries(others)) {
    const { state, text } = nodes[id];
    const hasFailed = ["interrupted", "broken"].includes(state) && node.state !== "running";
    const wentOn = ["stopped", "edited", "length"].includes(state) && node.text.length > text.length;
    if (hasFailed || wentOn) nodes[id] = node;
  }
  return nodes;
}

/** The conversations of this tab, and what the store has besides. */
export function joined(own, stored) {
  const others = new Map(stored.map((conversation) => [conversation.id, conversation]));
  const both = own.map((conversation) => {
    const other = others.get(conversation.id) ?? { nodes: {} };
    const nodes = joinedNodes(conversation.nodes, other.nodes);
    return { ...conversation, ...changedIn(other, conversation), nodes };
  });
  return [...both, ...stored.filter(({ id }) => !own.some((conversation) => conversation.id === id))];
}

/** Add the messages of a file to a conversation that is here; the rest is that of the one that was spoken in last. */
export function extend(here, conversation) {
  const [earlier, later] = [conversation, here].sort((a, b) => a.updated - b.updated);
  Object.assign(here, later, changedIn(earlier, later), { nodes: joinedNodes(here.nodes, conversation.nodes) });
  atItsEnd(here);
}

export async function remove(conversation) {
  await inStore("readwrite", (store) => store.delete(conversation.id));
}

export function create() {
  const now = Date.now();
  return { id: identifier(), title: "", created: now, updated: now, system: "", leaf: null, nodes: {} };
}

function identifier() {
  // crypto.randomUUID is there in secure contexts only, and this page may be served over plain http.
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Add a message after `parent` (null: at the beginning), and make it the end of what is shown. */
export function add(conversation, parent, fields) {
  const node = { id: identifier(), parent, created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = Date.now();
  if (!conversation.title && node.role === "user") conversation.title = titleOf(node.text);
  return node;
}

/** The first line, up to 80 characters of it: none is cut in half. */
function titleOf(text) {
  return [...text.trim().split("\n")[0].slice(0, 160)].slice(0, 80).join("");
}

/** The messages from the first to the one that is shown last. */
export function path(conversation) {
  const nodes = [];
  for (let id = conversation.leaf; id !== null && id !== undefined; id = conversation.nodes[id].parent) {
    nodes.unshift(conversation.nodes[id]);
  }
  return nodes;
}

/** The alternatives of a message, itself among them, oldest first. */
export function siblings(conversation, node) {
  return Object.values(conversation.nodes).filter((other) => other.parent === node.parent)
    .sort((a, b) => a.created - b.created);
}

/** Show another alternative, and of what follows it the newest. */
export function choose(conversation, node) {
  let id = node.id;
  for (;;) {
    const children = Object.values(conversation.nodes).filter((other) => other.parent === id);
    if (!children.length) break;
    id = children.reduce((newest, child) => (child.created >= newest.created ? child : newest)).id;
  }
  conversation.leaf = id;
}

export function matches(conversation, words) {
  const text = folded([conversation.title, ...Object.values(conversation.nodes).map((node) => node.text)].join("\n"));
  return folded(words).split(/\s+/).every((word) => text.includes(word));
}

/** One writing of what reads alike: letters and their accents together (macOS parts them), each width of a letter as one. */
function folded(text) {
  return text.normalize("NFKC").toLowerCase();
}

export function exported(conversations) {
  return JSON.stringify({ format: "edgelm-conversations", version: 1, conversations }, null, 1);
}

/** Read what `exported` wrote; throws an Error that says what is wrong. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== "edgelm-conversations" || !Array.isArray(file.conversations)) {
    throw new Error("This file has no conversations that were exported here.");
  }
  return file.conversations.map((conversation) => {
    if (isSound(conversation)) return atRest(conversation);
    const { id, title } = conversation ?? {};
    throw new Error(`The conversation ${JSON.stringify(title ?? id ?? null)} in this file is broken.`);
  });
}

const isText = (value) => typeof value === "string";
const isTextOrNone = (value) => isText(value ?? "");
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function isSound(conversation) {
  if (!isObject(conversation)) return false;
  const { id, title, system, created, updated, used, titleAt, systemAt, nodes, leaf } = conversation;
  const numbers = [created, updated, used ?? 0, titleAt ?? 0, systemAt ?? 0];
  return [id, title, system].every(isText) && numbers.every(Number.isFinite) && isObject(nodes) &&
    (leaf === null || Object.hasOwn(nodes, leaf)) && Object.keys(nodes).every((key) => isSoundNode(nodes, key));
}

function isSoundNode(nodes, key) {
  const node = nodes[key];
  if (!isObject(node)) return false;
  const { id, text, role, created, thinking, model, state, problem, tokens, stats } = node;
  return id === key && isText(text) && ["user", "assistant"].includes(role) && Number.isFinite(created) &&
    [thinking, model, state, problem].every(isTextOrNone) && beginsSomewhere(nodes, node) &&
    (tokens ?? []).every?.((token) => isToken(token) && token[2]?.every?.(isToken)) &&
    (!stats || [stats.tokens, stats.rate].every(Number.isFinite));
}

const isToken = (value) => Array.isArray(value) && isText(value[0]) && Number.isFinite(value[1]);

/** Whether the messages before one lead to a first one, and not round in a circle. */
function beginsSomewhere(nodes, node) {
  const seen = new Set();
  for (let at = node; at.parent !== null; at = nodes[at.parent]) {
    if (seen.has(at.id) || !Object.hasOwn(nodes, at.parent) || !isObject(nodes[at.parent])) return false;
    seen.add(at.id);
  }
  return true;
}
