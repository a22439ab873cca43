// Everything with the keyboard. Alt and a letter, so that no shortcut is a character that somebody types.

import { byId, element, isComposing } from "./dom.js";

const SHORTCUTS = [
  ["KeyN", "Alt N", "New conversation", "newConversation"],
  ["KeyK", "Alt K", "Search the conversations", "search"],
  ["KeyR", "Alt R", "Answer again", "regenerate"],
  ["KeyE", "Alt E", "Edit the last message", "edit"],
  ["KeyT", "Alt T", "Show or hide the last answer’s tokens", "tokens"],
  ["KeyS", "Alt S", "Settings", "settings"],
  ["KeyQ", "Alt Q", "Write a message", "question"],
];
const OTHERS = [
  ["Enter", "Send"],
  ["Shift Enter", "A new line"],
  ["Esc", "Stop the answer"],
  ["← →", "From token to token"],
];

export function listenForShortcuts(actions) {
  document.addEventListener("keydown", (event) => {
    if (isComposing(event) || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") actions.stop();
    if (!event.altKey || event.ctrlKey || event.metaKey) return;
    const found = SHORTCUTS.find(([code]) => code === event.code);
    if (!found) return;
    event.preventDefault();
    actions[found[3]]();
  });
  const rows = [...OTHERS, ...SHORTCUTS.map(([, keys, text]) => [keys, text])];
  byId("shortcut-list").replaceChildren(...rows.flatMap(([keys, text]) => [
    element("dt", {}, ...keys.split(" ").flatMap((key) => [element("kbd", {}, key), " "])), element("dd", {}, text),
  ]));
  byId("open-shortcuts").addEventListener("click", () => byId("shortcuts").showModal());
}
