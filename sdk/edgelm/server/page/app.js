// The page: brings the parts together.

import * as api from "./api.js";
import * as kept from "./conversations.js";
import { fill, isLongerThan } from "./answering.js";
import { announce, byId, byTouch, element, isComposing } from "./dom.js";
import { checkSize, fenced } from "./files.js";
import { spoken } from "./markdown.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { listenForShortcuts } from "./shortcuts.js";
import { forEver, forThisTab } from "./storage.js";
import { followTheme } from "./theme.js";
import { Thread } from "./thread.js";
import { hideAlternatives } from "./tokens.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer arrives
const NOTE = `Runs on ${api.isHere ? "this machine" : location.hostname}. Answers can be wrong.`;
const NO_MODEL = "No model is here yet. In a terminal: edgelm pull smollm2-135m-instruct";

const settings = new Settings();
const running = new Map(); // conversation's id -> AbortController
let conversations = [];
let current = kept.create();
let models = [];
let described; // once it is known which model is chosen and what it can be told
let unkept = null; // why this browser does not keep conversations
let isAway = false; // whether the server did not answer when it was last asked for its models

const thread = new Thread({
  edit: (node, text) => {
    if (running.has(current.id)) return; // it stays where it is written
    const { parent, role, model } = node;
    if (role === "user") {
      respond(kept.add(current, parent, { role, text }).id);
      return;
    }
    kept.add(current, parent, { role, text, model, state: "edited" });
    keep(current);
    show({ staying: true });
    announce("Kept");
  },
  regenerate: (node) => respond(node.parent),
  retry: (node) => (node.goesOn ? goOn(node) : respond(node.parent, node)),
  goOn,
  choose: (node) => {
    kept.choose(current, node);
    keep(current);
    show({ staying: true });
  },
});
const sidebar = new Sidebar({ open, rename, remove });

// Answering

const nothing = () =>
  ({ text: "", thinking: "", tokens: [], stats: null, isCut: false, goesOn: false, status: 0, state: "running" });

/** Answer behind the text that an answer has. */
function goOn(node) {
  respond(node.parent, node, { goesOn: true, status: 0, state: "running" });
}

/** Answer the message `parent`, in `again` where that is given; `begun` is what is there of the answer. */
async function respond(parent, again = null, begun = nothing()) {
  const conversation = current;
  if (running.has(conversation.id)) return;
  const controller = new AbortController();
  const node = again ? Object.assign(again, begun) : kept.add(conversation, parent, { role: "assistant", ...begun });
  running.set(conversation.id, controller);
  if (!conversations.includes(conversation)) conversations.push(conversation);
  show();
  announce("Answering");
  await keep(conversation);
  await described;
  node.model = settings.model;
  let saved = Date.now();
  let drawn = true;
  const changed = () => {
    if (Date.now() - saved > SAVE_EVERY) {
      saved = Date.now();
      keep(conversation);
    }
    if (!drawn || conversation !== current) return;
    drawn = false;
    requestAnimationFrame(() => {
      drawn = true;
      if (conversation === current) thread.update(node);
    });
  };
  const contextShift = named(node.model)?.context_shift ?? 0; // how many tokens stay, where the server says
  await fill(conversation, node, { settings, contextShift, signal: controller.signal, changed });
  noteWhatIsCut(conversation, node);
  running.delete(conversation.id);
  await keep(conversation);
  if (conversation === current) show({ staying: true });
  else sidebar.show(conversations, current);
  announce(saidAtTheEnd(conversation, node));
  if (node.status === 401) askForKey(node.problem);
  const isBack = isAway && node.state !== "broken";
  if (isBack || node.status === 404) loadModels(); // or its models are others by now
}

/** Nothing waits for this: the server that counts may be the one that an answer was stopped for. */
async function noteWhatIsCut(conversation, node) {
  const isCut = await isLongerThan(named(node.model)?.context_length, conversation, node);
  if (isCut === node.isCut) return;
  node.isCut = isCut;
  await keep(conversation);
  if (conversation === current) show({ staying: true });
}

function saidAtTheEnd(conversation, node) {
  if (node.state === "broken") return node.problem;
  if (node.state === "stopped") return "Stopped";
  if (node.state === "interrupted") return "The answer was interrupted";
  if (conversation !== current) return `Answer complete, in ${conversation.title}`;
  return `${node.state === "length" ? "The answer reached its longest" : "Answer complete"}: ${spoken(node.text)}`;
}

async function keep(conversation) {
  if (!conversations.includes(conversation)) return; // it was deleted while its answer arrived
  await done(kept.save(conversation));
}

/** Wait for the browser's store, and say where it does not work. */
async function done(work) {
  try {
    return await work;
  } catch (error) {
    unkept = `This browser does not keep conversations (${error.message}).`;
    tell(unkept);
    return null;
  }
}

/** Say something below the question, and to a screen reader when it is new. */
function tell(text) {
  if (byId("note").textContent === text) return;
  byId("note").textContent = text;
  announce(text);
}

/** Say what is so as long as nothing went wrong. */
function showNote() {
  if (models.length) byId("note").textContent = unkept ?? NOTE;
  else tell(NO_MODEL);
}

function send() {
  const text = byId("question").value;
  if (!text.trim() || running.has(current.id)) return;
  setDraft("");
  respond(kept.add(current, current.leaf, { role: "user", text }).id);
}

// Showing

function show(how) {
  const busy = running.has(current.id);
  const isLost = document.activeElement === byId(busy ? "send" : "stop"); // which is hidden now
  thread.show(current, busy, how);
  sidebar.show(conversations, current);
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  if (isLost) (byTouch.matches ? byId(busy ? "stop" : "send") : byId("question")).focus();
  byId("system").value = current.system;
  byId("context").textContent = contextText();
  document.title = current.title ? `${current.title} · edgelm` : "edgelm";
  byId("title").textContent = current.title || "New conversation";
}

const named = (name) => models.find(({ id }) => id === name);

function contextText() {
  const context = named(settings.model)?.context_length;
  if (!context || !current.used) return "";
  return `${current.used.toLocaleString()} / ${context.toLocaleString()} tokens`;
}

function open(conversation) {
  current = conversation;
  forThisTab.setItem("edgelm.current", current.id);
  sidebar.toggle(false);
  setDraft(forEver.getItem(draftKey(current)) ?? "");
  show();
  if (!byTouch.matches) byId("question").focus(); // a phone's keyboard would cover what was opened
}

function rename(conversation) {
  const title = prompt("Title", conversation.title);
  if (!title?.trim()) return;
  kept.set(conversation, "title", title.trim());
  keep(conversation);
  show();
}

async function remove(conversation) {
  if (!confirm(`Delete “${conversation.title || "New conversation"}”?`)) return;
  running.get(conversation.id)?.abort();
  forEver.removeItem(draftKey(conversation));
  conversations = conversations.filter((other) => other !== conversation);
  await done(kept.remove(conversation));
  if (conversation === current) open(kept.create());
  else show();
}

// The question: an unsent one is kept

const draftKey = (conversation) => `edgelm.draft.${conversations.includes(conversation) ? conversation.id : "new"}`;

function setDraft(text) {
  byId("question").value = text;
  drafted();
}

function drafted() {
  if (byId("question").value) forEver.setItem(draftKey(current), byId("question").value);
  else forEver.removeItem(draftKey(current));
}

// Models and the key

async function loadModels() {
  try {
    models = await api.models();
    isAway = false;
  } catch (error) {
    isAway = true;
    tell(error.message);
    if (error.status === 401) askForKey(error.message);
    return;
  }
  showNote();
  byId("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  if (!models.some(({ id }) => id === settings.model)) settings.choose(models[0]?.id ?? null);
  byId("model").value = settings.model ?? "";
  await chosen();
}

function chosen() {
  byId("context").textContent = contextText();
  described = describe(settings.model);
  return described;
}

async function describe(model) {
  const variables = model ? await api.templateVariables(model).catch(() => []) : [];
  if (model === settings.model) settings.offerThinking(variables);
}

function askForKey(why) {
  const dialog = byId("ask-key");
  if (dialog.open) return;
  byId("ask-key-title").textContent = why.replace(/\.$/, "");
  dialog.returnValue = "";
  dialog.showModal();
}

// Export and import

async function exportAll() {
  const all = kept.joined(conversations, (await done(kept.all())) ?? []); // what other tabs have added, too
  const url = URL.createObjectURL(new Blob([kept.exported(all)], { type: "application/json" }));
  element("a", { href: url, download: "edgelm-conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // not every browser has read it by now
}

async function importFile(file) {
  try {
    const found = kept.imported(await file.text());
    for (const conversation of found) {
      const here = conversations.find(({ id }) => id === conversation.id);
      if (here) kept.extend(here, conversation);
      else conversations.push(conversation);
      await keep(here ?? conversation);
    }
    show();
    announce(`Imported: ${found.length}`);
  } catch (error) {
    alert(error.message);
  }
}

const UNDOABLE = 1 << 16; // characters

async function addFiles(files) {
  try {
    const parts = await Promise.all(files.map(fenced));
    const message = [...parts, byId("question").value].join("\n\n"); // with what was typed meanwhile
    checkSize([current.system, ...kept.path(current).map(({ text }) => text), message]);
    byId("question").focus();
    byId("question").setSelectionRange(0, 0);
    // As if it were typed, so that it can be undone; half a megabyte takes seconds so.
    const added = `${parts.join("\n\n")}\n\n`;
    // Behind a dialog it has no focus, and another field would get the text.
    const isTyped = added.length <= UNDOABLE && document.activeElement === byId("question");
    if (!isTyped || !document.execCommand("insertText", false, added)) setDraft(message);
    byId("question").setSelectionRange(message.length, message.length);
    showNote();
    announce(`Added: ${files.length}`);
    byId("question").scrollTop = byId("question").scrollHeight; // where the question goes
  } catch (error) {
    refuse(error.message);
  }
}

function refuse(why) {
  byId("note").textContent = ""; // each file is refused anew
  tell(why);
}

/** Take the files that are dropped or pasted: else the browser would show one in the place of the page. */
function takeFiles(event) {
  const { types, files } = event.dataTransfer ?? event.clipboardData;
  // WebKitGTK calls a file that is dragged a link, and gives it to no page.
  const isFile = types.includes("Files") || (event.type !== "paste" && types.includes("text/uri-list"));
  if (!isFile || types.includes("text/plain")) return; // programs put a picture beside a text
  event.preventDefault();
  if (event.type.startsWith("drag")) return;
  if (files.length) addFiles([...files]);
  else refuse("This browser does not give the page what was dropped. Use + for a file.");
}

// Start

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("question").addEventListener("input", drafted);
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event) || byTouch.matches) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => running.get(current.id)?.abort());
  byId("new-conversation").addEventListener("click", () => open(kept.create()));
  byId("model").addEventListener("change", (event) => {
    settings.choose(event.target.value);
    chosen();
  });
  byId("open-settings").addEventListener("click", () => byId("settings").showModal());
  byId("system").addEventListener("input", (event) => kept.set(current, "system", event.target.value));
  byId("settings").addEventListener("close", () => conversations.includes(current) && keep(current));
  byId("ask-key").addEventListener("close", ({ target }) => {
    if (!target.returnValue) return; // left without a key
    api.setKey(byId("key").value);
    loadModels();
  });
  byId("export").addEventListener("click", exportAll);
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await importFile(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const event of ["dragenter", "dragover", "drop", "paste"]) window.addEventListener(event, takeFiles);
  byId("add-files").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", async ({ target }) => {
    await addFiles([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const event of ["online", "focus"]) window.addEventListener(event, loadModels); // a model may have come meanwhile
}

const last = (role) => kept.path(current).findLast((node) => node.role === role);

async function start() {
  followTheme();
  listen();
  listenForShortcuts({
    newConversation: () => open(kept.create()),
    stop: () => hideAlternatives() || running.get(current.id)?.abort(),
    regenerate: () => last("assistant") && respond(last("assistant").parent),
    edit: () => last("user") && !running.has(current.id) && thread.edit(last("user")),
    tokens: () => last("assistant") && thread.toggleTokens(last("assistant")),
    settings: () => byId("settings").showModal(),
    search: () => sidebar.toggle(true),
    question: () => byId("question").focus(),
  });
  conversations = (await done(kept.all())) ?? [];
  open(conversations.find(({ id }) => id === forThisTab.getItem("edgelm.current")) ?? current);
  await loadModels();
}

described = start(); // a question that is asked before waits for it
