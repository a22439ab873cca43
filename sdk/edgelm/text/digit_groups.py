"""Digits in groups of three from the right, as Cohere's newer tokenizers split them, in a time that grows with a text.

The pattern of their tokenizer.json looks ahead to the end of a number for each group, and where a letter follows, from
each digit: a number of 12,000 digits takes 8 s.
"""

from __future__ import annotations

from typing import Any

_GROUPS = r"\d{1,3}(?=(?:\d{3})*\b)"
# The same in three steps: whole numbers with no letter behind them; of each the digits before the first whole group;
# and the groups. \G is where the last match ended, which without one is the beginning of the number, \A.
_STEPS = (r"(?<!\d)\d++\b", r"\A\d{1,2}(?=(?:\d{3})++\z)", r"(?:\A(?=\d++\z)|\G(?!\A))\d{3}")


def with_linear_digit_groups(pre_tokenizer: Any) -> Any:
    """Return a tokenizer.json's pre-tokenizer with those steps in the place of that pattern."""
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    if pre_tokenizer == _split(_GROUPS):
        return {"type": "Sequence", "pretokenizers": list(map(_split, _STEPS))}
    steps = pre_tokenizer.get("pretokenizers")
    if not isinstance(steps, list):
        return pre_tokenizer
    return pre_tokenizer | {"pretokenizers": list(map(with_linear_digit_groups, steps))}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
