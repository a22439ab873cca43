// Emphasis where words have no spaces between them. By CommonMark, `**注意：**请` has none, because a mark behind punctuation
// needs a space behind it, and models write so in Chinese, Japanese and Korean all the time. What counts here, as in
// https://github.com/tats-u/markdown-cjk-friendly: punctuation of these scripts is as their letters are, and any other may
// stand inside where a character of theirs stands outside.

import { Tokenizer } from "./vendor/marked.esm.js";

// Two classes: JavaScriptCore finds no character of two code units before a place by a class that has shorter ones too.
const UNSPACED = "(?:[\\u1100-\\u11ff\\u2e80-\\u303e\\u3041-\\u4dbf\\u4e00-\\ua4cf\\ua960-\\ua97f\\uac00-\\ud7fb\\uf900-\\ufaff" +
  "\\ufe30-\\ufe6f\\uff01-\\uff9f\\uffe0-\\uffee]|[\\u{1b000}-\\u{1b2ff}\\u{20000}-\\u{3fffd}])";
const SHUTS_OUT = new RegExp(
  `(?=[\\p{P}\\p{S}])(?:${UNSPACED}(?=[*~])|(?<=[*~])${UNSPACED}|[^*~](?=[*~]+${UNSPACED})|(?<=${UNSPACED}[*~]+)[^*~])`, "gu",
);
const NOTHING_INSIDE = { inlineTokens: () => [] };

export class UnspacedTokenizer extends Tokenizer {
  emStrong(source, masked, before) {
    // "_" is part of words in these scripts too.
    if (source[0] === "_") return super.emStrong(source, masked, characterBefore(source, masked, before));
    return this.lenient(super.emStrong, source, masked, before);
  }

  del(source, masked, before) {
    return this.lenient(super.del, source, masked, before);
  }

  /** Look for marks in a text with letters in the place of what would shut them out. */
  lenient(find, source, masked, unit = "") {
    const { rules, options } = this;
    const before = characterBefore(source, masked, unit);
    const found = find.call(
      { rules, options, lexer: NOTHING_INSIDE }, letters(before + source).slice(before.length), letters(masked), before,
    );
    if (!found) return found;
    const raw = source.slice(0, found.raw.length);
    const width = (found.raw.length - found.text.length) / 2;
    const text = raw.slice(width, raw.length - width);
    return { ...found, raw, text, tokens: this.lexer.inlineTokens(text) };
  }
}

/** marked knows the last code unit alone, which is half of an emoji. */
function characterBefore(source, masked, unit) {
  const end = masked.length - source.length;
  return /\p{Surrogate}/u.test(unit) ? masked.slice(end - 2, end) : unit;
}

/** As many code units as before: the places of marks are told by them. */
function letters(text) {
  return text.replace(SHUTS_OUT, (mark) => "a".repeat(mark.length));
}
