// Conversations: trees of messages, kept in this browser. An edited message or a second answer is a sibling of the first.
//
// conversation: {id, title, created, updated, system, leaf, nodes}; node: {id, parent, role, text, and for an answer
// thinking (what was thought before it), tokens, stats, model, state}, where state is "running", "stopped", "length",
// "broken" or absent, and `problem` says why.

const STORE = "conversations";
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
  return found.sort((a, b) => b.updated - a.updated);
}

/** Messages that another tab has added since stay: none is ever taken out of a conversation. */
export async function save(conversation) {
  await inStore("readwrite", (store) => {
    const kept = store.get(conversation.id);
    kept.onsuccess = () => store.put({ ...conversation, nodes: { ...kept.result?.nodes, ...conversation.nodes } });
    return kept;
  });
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
  if (!conversation.title && node.role === "user") conversation.title = node.text.trim().split("\n")[0].slice(0, 80);
  return node;
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
  const text = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.text)].join("\n").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
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
  for (const conversation of file.conversations) check(conversation);
  return file.conversations;
}

function check(conversation) {
  const { id, title, system, created, updated, nodes, leaf } = conversation ?? {};
  const sound = typeof id === "string" && typeof title === "string" && typeof system === "string" && nodes &&
    Number.isFinite(created) && Number.isFinite(updated) && (leaf === null || leaf in nodes) &&
    Object.entries(nodes).every(([key, node]) => node.id === key && typeof node.text === "string" &&
      typeof (node.thinking ?? "") === "string" &&
      ["user", "assistant"].includes(node.role) && (node.parent === null || nodes[node.parent]?.created <= node.created));
  if (!sound) throw new Error(`The conversation ${JSON.stringify(title ?? id ?? null)} in this file is broken.`);
}
