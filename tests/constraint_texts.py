"""Texts that a constraint takes or not."""

from __future__ import annotations

import numpy as np

from edgelm.structure.constraint import Constraint
from edgelm.text.tokenizer import Tokenizer


def accepts(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Tell whether a constraint lets a text be the whole answer: through the masks, one token at a time."""
    matcher = constraint.compile(tokenizer, end_ids=[2])
    for id_ in [*tokenizer.encode_continuation(text), 2]:
        row = np.zeros(tokenizer.vocab_size, np.float32)
        matcher.mask(row)
        if row[id_] < 0:
            return False
        matcher.advance(id_)
    return True
