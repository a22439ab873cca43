"""Digits in groups of three from the right: the author's groups, in a time that grows with the text."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as TheirTokenizer

from edgelm.text.digit_groups import with_linear_digit_groups
from edgelm.text.tokenizer import Tokenizer

GROUPS = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), "isolated")
PIECES = ("1", "23", "456", "7890", "½", "٣", "a", "é", "_", "̈", " ", "\n", ".", "-")


def spec(pre_tokenizer: pre_tokenizers.PreTokenizer) -> dict[str, Any]:
    """Return a tokenizer.json whose only token is an unknown piece."""
    tokenizer = TheirTokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizer
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.loads(tokenizer.to_str()) | {"decoder": decoder}


@pytest.mark.parametrize("author", [GROUPS, pre_tokenizers.Sequence([GROUPS, pre_tokenizers.Whitespace()])])
def test_the_groups_are_those_of_the_authors_pattern(author: pre_tokenizers.PreTokenizer) -> None:
    content = spec(author)
    content["pre_tokenizer"] = with_linear_digit_groups(content["pre_tokenizer"])
    ours = TheirTokenizer.from_str(json.dumps(content)).pre_tokenizer
    choice = random.Random(0)
    for _ in range(2000):
        text = "".join(choice.choices(PIECES, k=choice.randint(1, 12)))
        assert ours.pre_tokenize_str(text) == author.pre_tokenize_str(text)


def test_a_number_with_a_letter_behind_it_takes_no_square_of_its_length(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec(GROUPS)))
    tokenizer = Tokenizer.load(tmp_path)
    began = time.monotonic()
    assert len(tokenizer.encode("7" * 12_000 + "a")) == 1
    assert time.monotonic() - began < 4  # measured: 0.02 s; 8 s with the author's pattern
