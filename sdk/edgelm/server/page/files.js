// Text files that go to the model with a message.

const LONGEST = 256; // KiB; a request may have 1 MiB, with all that was said before

/** A file as `edgelm chat` says it: in a fence that its text does not have. Throws an Error that says why it cannot be. */
export async function fenced(file) {
  const text = (await textOf(file)).replaceAll("\r\n", "\n").trimEnd();
  const longest = (text.match(/`{3,}/g) ?? []).reduce((most, run) => Math.max(most, run.length), 2);
  const fence = "`".repeat(longest + 1);
  return `File ${file.name}:\n${fence}\n${text}\n${fence}`;
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
