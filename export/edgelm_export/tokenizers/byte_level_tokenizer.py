"""Byte-level BPE as tokenizer.json, of a vocabulary, its merges, and the way that text is split before they apply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# Words that begin with capitals, or are of them, are apart: of o200k_base, and of Mistral's Tekken.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_SUFFIX}"
_GPT4O_SPLIT = _WORDS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = _GPT4O_SPLIT.replace(_SUFFIX, "").replace(r"\p{N}{1,3}", r"\p{N}")

# Groups of three digits are counted from the end of a number.
_AYA_SPLITS = (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O_SPLIT)
_MINICPM5_SPLITS = (r"\p{N}{1,3}", _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}+"))
_SEED_SPLIT = _QWEN2_SPLIT.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")
_BLOOM_SPLIT = r" ?[^(\s|.,!?…。，、।۔،)]+"
_QWEN35_SPLIT = _QWEN2_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_DEEPSEEK_CODER_SPLITS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
# Letters of scripts that have capitals, as they were when the tokenizer was made: not all of today's.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM_SPLITS = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
)
_DEEPSEEK_V3_SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Trinity counts a number's groups of three digits from its end, and takes texts of Asian scripts out.
_AFMOE_SPLITS = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
    _DEEPSEEK_V3_SPLITS[-1],
)
# K-EXAONE joins words with single spaces between them.
_EXAONE_MOE_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Jais 2 takes runs of spaces in powers of two.
_JAIS2_SPLIT = (
    _LLAMA3_SPLIT.removesuffix(r"|\s+(?!\S)|\s+")
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s{1}"
)
# Kimi's: Han characters are apart from the letters of other scripts.
_KIMI_SPLIT = (
    r"[\p{Han}]+|"
    + _WORDS.replace(_CAPITALS, _CAPITALS[:-1] + r"&&[^\p{Han}]]").replace(_SMALL, _SMALL[:-1] + r"&&[^\p{Han}]]")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_YOUTU_SPLITS = (
    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
    _GPT4O_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"),
)


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """What a byte-level tokenizer does before its merges: what vocabularies and merges do not say.

    `add_bos` holds where the metadata has no `tokenizer.ggml.add_bos_token`.
    """

    steps: tuple[Mapping[str, Any], ...]
    normalizer: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    def with_prefix_space(self) -> PreTokenizer:
        """Return this one with a space before each text that has none there."""
        steps = ({**step, "add_prefix_space": True} if step["type"] == "ByteLevel" else step for step in self.steps)
        return replace(self, steps=tuple(steps))


def _byte_level(*, use_regex: bool) -> Mapping[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> Mapping[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT2 = PreTokenizer(steps=(_byte_level(use_regex=True),))
_GPT_NEOX = replace(_GPT2, normalizer="NFC")
_STARCODER = PreTokenizer(steps=(_DIGITS, _byte_level(use_regex=True)))


def _splitting(*regexes: str, **settings: Any) -> PreTokenizer:
    return PreTokenizer(steps=(*map(_split, regexes), _byte_level(use_regex=False)), **settings)


OF_BYTES = _splitting()  # whose tokens are bytes, of which nothing is joined
_FALCON = PreTokenizer(
    steps=(_split(r"[\p{P}$+<=>^~|`]+"), _byte_level(use_regex=True), _split("[0-9][0-9][0-9]")),
)
_BLOOM = _splitting(_BLOOM_SPLIT)
_LLAMA3 = _splitting(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
_QWEN2 = _splitting(_QWEN2_SPLIT, normalizer="NFC")

# tokenizer.ggml.pre -> what the models of that name have in their tokenizer.json.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "exaone4": _GPT2,  # as llama.cpp splits for it, and for the next five
    "mellum": _GPT2,
    "trillion": _GPT2,
    "a.x-4.0": _GPT2,
    "gigachat": _GPT2,
    "granite-docling": _GPT2,
    "mpt": _GPT_NEOX,  # Pythia's too
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,  # of two other BLOOMs, as llama.cpp splits for them
    "gpt3-finnish": _BLOOM,
    "viking": _splitting(_BLOOM_SPLIT, r"\p{N}"),
    "olmo": _GPT_NEOX,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "lfm2": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,  # as llama.cpp splits for it
    "midm-2.0": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": replace(_LLAMA3, add_bos=False),  # SmolLM3's
    "dbrx": _splitting(_LLAMA3_SPLIT),  # OLMo 2's
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": replace(_QWEN2, add_bos=True),
    "stablelm2": _QWEN2,
    "megrez": _QWEN2,
    "hunyuan": _splitting(_QWEN2_SPLIT),  # Hunyuan-A13B's
    "bailingmoe": _splitting(_QWEN2_SPLIT),  # Ling's
    "bailingmoe2": _splitting(_QWEN2_SPLIT),  # Ling 2.0's
    "kormo": _splitting(_QWEN2_SPLIT),  # as llama.cpp splits for it, and for the next
    "solar-open": _splitting(_QWEN2_SPLIT),
    "qwen35": _splitting(_QWEN35_SPLIT, normalizer="NFC"),
    "seed-coder": _splitting(_SEED_SPLIT),
    "gpt-4o": _splitting(_GPT4O_SPLIT),  # GPT-OSS's and Phi-4-mini's
    "kanana2": _splitting(_GPT4O_SPLIT),
    "llama4": _splitting(_GPT4O_SPLIT),
    "minimax-m2": _splitting(_GPT4O_SPLIT),
    "tekken": _splitting(TEKKEN_SPLIT, ignore_merges=True, add_bos=True),  # Mistral Nemo's
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,  # Granite's
    "command-r": replace(_STARCODER, normalizer="NFC", add_bos=True),  # Cohere's, Aya's
    "exaone": _STARCODER,  # EXAONE 3's
    "minerva-7b": _STARCODER,
    "mellum2": _STARCODER,
    "tiny_aya": _splitting(*_AYA_SPLITS),
    "cohere2moe": _splitting(*_AYA_SPLITS),  # North Mini Code's
    "deepseek-coder": _splitting(*_DEEPSEEK_CODER_SPLITS),
    "deepseek-llm": _splitting(*_DEEPSEEK_LLM_SPLITS),  # DeepSeek V2's too
    "deepseek-v3": _splitting(*_DEEPSEEK_V3_SPLITS),
    "hunyuan-dense": _splitting(*_DEEPSEEK_V3_SPLITS),
    "joyai-llm": _splitting(*_DEEPSEEK_V3_SPLITS),  # as llama.cpp splits for it
    "minicpm5": _splitting(*_MINICPM5_SPLITS, ignore_merges=True),
    "youtu": _splitting(*_YOUTU_SPLITS, ignore_merges=True),
    "glm4": _splitting(_LLAMA3_SPLIT, ignore_merges=True),  # as llama.cpp splits for it, and for the next
    "glm5": _splitting(_LLAMA3_SPLIT, ignore_merges=True),
    "laguna": _splitting(r"[^\n]+|[\n]+", _QWEN2_SPLIT),  # as llama.cpp splits for it, and for the next three
    "afmoe": _splitting(*_AFMOE_SPLITS),
    "exaone-moe": _splitting(_EXAONE_MOE_SPLIT),
    "jais-2": _splitting(_JAIS2_SPLIT),
    "falcon": _FALCON,
    "chatglm-bpe": _splitting(_LLAMA3_SPLIT),
    "kimi-k2": _splitting(_KIMI_SPLIT, ignore_merges=True),  # Moonlight's too
}

# The letter that stands for each byte in a vocabulary: its own, where that is printed.
_PRINTED = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_LETTERS = {byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}


def byte_letters(token: bytes) -> str:
    """Write bytes as the vocabularies of byte-level tokenizers have them, a letter for each."""
    return token.decode("latin-1").translate(_LETTERS)


def byte_level_json(
    pre_tokenizer: PreTokenizer,
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    *,
    added: Sequence[Mapping[str, Any]],
    around: Mapping[str, Any] | None,
) -> str:
    """Return the content of tokenizer.json.

    added: the tokens that are found in the text as they are, before it is split; the vocabulary has them too. around:
    the post-processor.
    """
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": pre_tokenizer.normalizer} if pre_tokenizer.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer.steps},
        "post_processor": around,
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(vocabulary, merges, ignore_merges=pre_tokenizer.ignore_merges),
    }
    return json.dumps(parts, ensure_ascii=False) + "\n"


def joins_two_tokens(merge: str, vocabulary: Mapping[str, int]) -> bool:
    """Tell whether a merge joins two tokens to one; tokenizers ends the process, or panics, where it does not."""
    left, _, right = merge.partition(" ")
    joined = left in vocabulary and right in vocabulary and left + right in vocabulary
    return joined and bool(left and right) and " " not in right


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[str], *, ignore_merges: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }
