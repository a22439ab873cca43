// Markdown to elements. The parser is marked's; its tokens become elements here, so that no HTML is ever parsed: what a
// model writes as HTML is shown as text. Pictures become links, since loading one would tell another host.

import { Lexer } from "./vendor/marked.esm.js";
import { arrange, become, button, copy, element } from "./dom.js";
import { UnspacedTokenizer } from "./emphasis.js";
import { blockFormulaIn, formula, FORMULAS, withoutFormulas } from "./formulas.js";

const LONGEST_RUN = 4096; // characters
const MOST_MARKS = 256; // of emphasis
const SAFE_LINK = /^(https?:|mailto:)/i;

/**
 * marked takes the square of a run of marks to pair them, or more: 2 minutes for 60,000 characters of `*a_`, and 0.2 s for
 * each paragraph of 4,096. One as long as that, or with as many marks, is no prose, and stays as it is written.
 */
class BoundedLexer extends Lexer {
  inlineTokens(text, tokens = []) {
    this.run = text;
    if (text.length <= LONGEST_RUN && (text.match(/[*_~]/g) ?? []).length <= MOST_MARKS) return super.inlineTokens(text, tokens);
    tokens.push({ type: "text", raw: text, text });
    return tokens;
  }
}

class PageTokenizer extends UnspacedTokenizer {
  /** An "=" alone on its line makes no heading of a formula's beginning. */
  lheading(source) {
    const heading = super.lheading(source);
    if (!heading) return heading;
    const start = blockFormulaIn(source);
    return start >= 0 && start < heading.raw.length ? undefined : heading;
  }
}

const SYNTAX = {
  gfm: true,
  extensions: FORMULAS,
  hooks: { emStrongMask(masked) { return withoutFormulas(this.lexer.run, masked); } },
};

/** Show a text in `target`, block by block: what did not change keeps its elements, with what is selected in them. */
export class MarkdownView {
  constructor(target) {
    this.target = target;
    this.blocks = []; // {raw, node}
  }

  show(text) {
    this.blocks = this.parsed(text);
    arrange(this.target, this.blocks.map(({ node }) => node));
  }

  parsed(text) {
    try {
      const tokens = new BoundedLexer({ ...SYNTAX, tokenizer: new PageTokenizer() }).lex(text).filter(({ type }) => type !== "space" && type !== "def");
      return tokens.map((token, index) => {
        const shown = this.blocks[index];
        if (shown?.raw === token.raw) return shown;
        const node = outermost(token);
        return { raw: token.raw, node: shown ? become(shown.node, node) : node };
      });
    } catch (error) {
      if (!(error instanceof RangeError) && error.name !== "InternalError") throw error; // that is Firefox's name for it
      return [{ raw: text, node: element("p", {}, text) }]; // thousands of quotes or lists in one another
    }
  }
}

/** What a screen reader says of a text: its words, without marks and buttons. */
export function spoken(text) {
  const target = element("div");
  new MarkdownView(target).show(text);
  for (const bar of target.querySelectorAll(".bar")) bar.remove();
  for (const node of target.querySelectorAll(".formula")) node.replaceWith(node.dataset.tex);
  for (const start of target.querySelectorAll("p, h3, h4, h5, h6, li, td, th, pre, br")) start.prepend("\n");
  return target.textContent.trim();
}

/** A block from right to left where its first letters are written so; what stands in it follows. */
function outermost(token) {
  const node = block(token);
  node.dir ||= "auto";
  return node;
}

function block(token) {
  const make = BLOCKS[token.type];
  return make ? make(token) : element("p", {}, token.raw);
}

const BLOCKS = {
  heading: (token) => element(`h${Math.min(6, token.depth + 2)}`, {}, ...inline(token.tokens)), // below the message's own
  paragraph: (token) => element("p", {}, ...inline(token.tokens)),
  text: (token) => element("p", {}, ...inline(token.tokens ?? [token])),
  html: (token) => element("p", {}, token.raw),
  formula: (token) => element("p", {}, formula(token)),
  begunFormula: (token) => element("p", {}, token.raw),
  hr: () => element("hr"),
  blockquote: (token) => element("blockquote", {}, ...blocks(token.tokens)),
  list: (token) =>
    element(token.ordered ? "ol" : "ul", token.ordered ? { start: token.start } : {}, ...token.items.map(item)),
  code: (token) => code(token.text, (token.lang ?? "").trim().split(/\s/)[0]),
  table: (token) =>
    element("div", { class: "table", tabIndex: 0, role: "group", "aria-label": "Table" },
      element("table", {},
        element("thead", {}, row("th", token.header)),
        element("tbody", {}, ...token.rows.map((cells) => row("td", cells))))),
};

function blocks(tokens) {
  return tokens.filter((token) => token.type !== "space").map(block);
}

function item(token) {
  // A tight list's text stands in the item itself, without a paragraph around it.
  return element("li", {}, ...token.tokens.filter((child) => child.type !== "space").flatMap((child) => {
    if (child.type === "text") return inline(child.tokens ?? [child]);
    return child.type in INLINE ? inline([child]) : [block(child)];
  }));
}

function row(tag, cells) {
  return element("tr", {}, ...cells.map((cell) => element(tag, { align: cell.align ?? "" }, ...inline(cell.tokens))));
}

function code(text, language) {
  const copyButton = button("Copy", () => copy(text, copyButton), { class: "quiet" });
  return element("div", { class: "code", dir: "ltr" },
    element("div", { class: "bar" }, element("span", {}, language || "text"), copyButton),
    element("pre", { tabIndex: 0, role: "group", "aria-label": language ? `Code, ${language}` : "Code" }, element("code", {}, text)));
}

function inline(tokens) {
  return tokens.map((token) => (INLINE[token.type] ?? asText)(token));
}

const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'" };

function decoded(text) {
  return text.replace(/&(?:amp|lt|gt|quot|#39);/g, (name) => ENTITIES[name]);
}

function asText(token) {
  return document.createTextNode(token.raw);
}

const INLINE = {
  formula,
  inlineFormula: formula,
  strong: (token) => element("strong", {}, ...inline(token.tokens)),
  em: (token) => element("em", {}, ...inline(token.tokens)),
  del: (token) => element("del", {}, ...inline(token.tokens)),
  codespan: (token) => element("code", { dir: "ltr" }, token.text),
  br: () => element("br"),
  checkbox: (token) => element("input", { type: "checkbox", checked: token.checked, disabled: true, "aria-label": "Done" }),
  escape: (token) => document.createTextNode(token.text),
  text: (token) => {
    if (!token.tokens) return document.createTextNode(decoded(token.raw));
    const fragment = document.createDocumentFragment();
    fragment.append(...inline(token.tokens));
    return fragment;
  },
  link: (token) => link(decoded(token.href), inline(token.tokens)),
  image: (token) => link(decoded(token.href), [`picture: ${token.text || token.href}`]),
};

function link(href, children) {
  if (!SAFE_LINK.test(href)) return element("span", {}, ...children);
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
