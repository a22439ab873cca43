// Text files that go to the model with a message.

const LONGEST = 256; // KiB; a request may have 1 MiB, with all that was said before

/** Put files before what is said of them, as `edgelm chat` does; throws an Error that says why one cannot be added. */
export async function withFiles(files, text) {
  const parts = await Promise.all([...files].map(fenced));
  return [...parts, text].join("\n\n");
}

/** A file's text in a fence that it does not have itself. */
async function fenced(file) {
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
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file. The model reads only text.`);
  return text;
}
