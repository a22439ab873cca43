// Formulas in TeX: \(…\) and $…$ in a line, \[…\], $$…$$ and \begin{align}…\end{align} on lines of their own. Temml
// (0.13.5) makes MathML of them, which browsers draw and screen readers know, with the lines and columns of
// vendor/temml.css; it is loaded with the first one. What it does not know stays as it is.

import { element } from "./dom.js";

const LONGEST = 4096; // characters
const LONG = 60; // characters of TeX: it may be wider than a phone

// An opening mark inside ends the search: each character is looked at once, however many are never closed.
const ROUND = String.raw`\\\(((?:\\(?![()])[^]|[^\\])+?)\\\)`;
const SQUARE = String.raw`\\\[((?:\\(?![[\]])[^]|[^\\])+?)\\\]`;
// A "$" alone inside is of a \text; three in a row say how dear something is.
const DOUBLE = String.raw`\$\$(?!\$)((?:\\[^]|[^\\$]|\$(?!\$))+?)\$\$(?!\$)`;
// As pandoc tells it from prices: no space inside the marks, and no digit behind them. Code is none either.
const SINGLE = "\\$(?![\\s$])((?:\\\\[^]|[^\\\\$`])*?(?:\\\\[^]|[^\\\\$`\\s]))\\$(?![\\d$])";
// Those of TeX's that are a formula without marks around them.
const NAMES = String.raw`\{(?:equation|align|alignat|gather|multline)\*?\}`;
const ENVIRONMENT = String.raw`(\\begin${NAMES}(?:(?!\\(?:begin|end)${NAMES})[^])+\\end${NAMES})`;

const IN_LINE = new RegExp(`^(?:${[ROUND, SINGLE].join("|")})`);
const ON_ITS_OWN = new RegExp(`^(?:${[SQUARE, DOUBLE, ENVIRONMENT].join("|")})`);
const BLOCK = new RegExp(`^ {0,3}(?:${[SQUARE, DOUBLE, ENVIRONMENT].join("|")})[ \\t]*(?:\\n|$)`);
// One that is still being written, up to the end of the text: until it is closed, it is no Markdown.
const NO_BLANK_LINE = String.raw`(?!\n[ \t]*\n)`;
const BEGUN_SQUARE = String.raw`\\\[(?!\S)(?:${NO_BLANK_LINE}(?:\\(?![[\]])[^]|[^\\]))*`;
const BEGUN_DOUBLE = String.raw`\$\$(?!\S)(?:${NO_BLANK_LINE}(?:\\[^]|[^\\$]|\$(?!\$)))*`;
const BEGUN_ENVIRONMENT = String.raw`\\begin${NAMES}(?:${NO_BLANK_LINE}(?!\\(?:begin|end)${NAMES})[^])*`;
const BEGUN = new RegExp(String.raw`^ {0,3}((?:${BEGUN_SQUARE}|${BEGUN_DOUBLE}|${BEGUN_ENVIRONMENT})\\?)$`);
const BLOCK_START = /\n(?= {0,3}(?:\$\$|\\\[|\\begin\{))/g;
const ANY = new RegExp([ROUND, SQUARE, DOUBLE, ENVIRONMENT, SINGLE].join("|"), "g");

/** What marked's Lexer is told of formulas. */
export const FORMULAS = {
  block: [blockFormula],
  startBlock: [blockFormulaIn],
  inline: [(source) => token("formula", ON_ITS_OWN.exec(source)) ?? token("inlineFormula", IN_LINE.exec(source))],
  startInline: [(source) => source.indexOf("$")],
};

/** Where a formula begins on a line of its own, below the first line of a paragraph; -1 where none does. */
export function blockFormulaIn(source) {
  const end = source.search(/\n[ \t]*\n/);
  for (const { index } of (end < 0 ? source : source.slice(0, end)).matchAll(BLOCK_START)) {
    const found = blockFormula(source.slice(index + 1));
    // A "$$" that closes another, with words behind it, begins none. marked leaves out the first character.
    const closes = found?.type === "begunFormula" && source.slice(0, index).split(/^\$(?!\$)|\$\$/).length % 2 === 0;
    if (found && !closes) return index;
  }
  return -1;
}

function blockFormula(source) {
  return token("formula", BLOCK.exec(source)) ?? token("begunFormula", BEGUN.exec(source));
}

function token(type, match) {
  if (!match || match[0].length > LONGEST) return undefined;
  return { type, raw: match[0], text: match.slice(1).find((tex) => tex !== undefined).trim() };
}

/** A text in which marked looks for emphasis, without what stands in formulas: `masked` has the same length. */
export function withoutFormulas(text, masked) {
  for (const { 0: { length }, index } of text.matchAll(ANY)) {
    if (masked[index] === "a") continue; // it begins in code
    masked = masked.slice(0, index) + "a".repeat(length) + masked.slice(index + length);
  }
  return masked;
}

let library = null;

/** Load Temml, once. */
function loaded() {
  library ??= new Promise((resolve, reject) => {
    const failed = () => reject((library = null)); // the next formula tries again
    const src = new URL("vendor/temml.min.js", import.meta.url).href;
    document.head.append(element("script", { src, on: { load: () => resolve(window.temml), error: failed } }));
  });
  return library;
}

/** A formula, shown as it is written until Temml is there. */
export function formula({ raw, text, type }) {
  const isOwn = type === "formula";
  const isLong = text.length > LONG;
  // Chromium and Safari break no formula over lines; one that is scrolled stands a little beside the line it is in.
  const place = isOwn ? "own" : isLong ? "long" : "";
  const scrolled = isLong ? { tabIndex: 0, role: "group", "aria-label": "Formula" } : {};
  const node = element("span", { class: `formula ${place}`, dir: "ltr", "data-tex": text, ...scrolled }, raw.trim());
  if (window.temml) draw(node, text, isOwn);
  else loaded().then(() => draw(node, text, isOwn), () => {});
  return node;
}

function draw(node, text, displayMode) {
  const written = node.textContent;
  try {
    window.temml.render(text, node, { displayMode, throwOnError: true, maxSize: [20, 240] });
  } catch {
    node.textContent = written;
  }
}
