// Text files that go to the model with a message.

const LONGEST = 256; // KiB
const MOST = 1024; // KiB, of a request, with all that was said before
const REST = 4; // KiB of a request that are no texts

/** A file as `edgelm chat` says it: in a fence that its text does not have. Throws an Error that says why it cannot be. */
export async function fenced(file) {
  const text = (await textOf(file)).replaceAll("\r\n", "\n").trimEnd();
  const longest = (text.match(/`{3,}/g) ?? []).reduce((most, run) => Math.max(most, run.length), 2);
  const fence = "`".repeat(longest + 1);
  return `File ${file.name}:\n${fence}\n${text}\n${fence}`;
}

/** Throws an Error where the server does not take these texts in one request. */
export function checkSize(texts) {
  const said = JSON.stringify(texts.map((content) => ({ role: "assistant", content })));
  if (new TextEncoder().encode(said).length <= (MOST - REST) * 1024) return;
  throw new Error("With what is said already, that is more than the server takes (1 MB). Add less, or begin a new conversation.");
}

async function textOf(file) {
  if (file.size > LONGEST * 1024) throw new Error(`${file.name} is too large: a file may have ${LONGEST} KB.`);
  let text = "\0";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    // no text in UTF-8, or a folder
  }
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file in UTF-8. The model reads no other.`);
  return text;
}
