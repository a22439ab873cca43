"""Fill-in-the-middle: the prompt of models that were trained to write what stands between two texts."""

from __future__ import annotations

from edgelm.errors import TokenizerError
from edgelm.text.tokenizer import Tokenizer

# One row each: the control tokens before the text in front, before the text behind, and before what is to be written.
FILL_IN_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, Granite Code
    ("<|fim_pre|>", "<|fim_suf|>", "<|fim_mid|>"),  # LFM2
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SantaCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # the first SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def fill_in_ids(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Return the prompt for the text between `prefix` and `suffix` (arXiv:2207.14255, its order PSM).

    Raises:
        TokenizerError: the model has no tokens for it.
    """
    for names in FILL_IN_TOKENS:
        before, behind, middle = (tokenizer.control_tokens.get(name) for name in names)
        if before is not None and behind is not None and middle is not None:
            return [*tokenizer.leading_ids, *tokenizer.encode_parts([before, prefix, behind, suffix, middle])]
    known = "; ".join(" ".join(names) for names in FILL_IN_TOKENS)
    raise TokenizerError(f"The model has no tokens to fill in the middle; edgelm knows {known}.")
