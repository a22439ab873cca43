"""A small vocabulary for tiktoken, and what tiktoken makes of a piece of text with it, written out."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizer_corpus import CORPUS_TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgelm_export.tokenizers.byte_level_tokenizer import byte_letters

TEXTS = [text.replace("<|", "<") for text in CORPUS_TEXTS]  # no control tokens


def trained_ranks() -> dict[bytes, int]:
    """Train a vocabulary of 500 tokens on the corpus without any split; the bytes come first, in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    letters = {letter: byte for byte in range(256) for letter in byte_letters(bytes([byte]))}
    found = {bytes(letters[letter] for letter in token): rank for token, rank in tokenizer.get_vocab().items()}
    assert len(found) == 500
    inner = sorted(found, key=lambda token: (token[0], 0) if len(token) == 1 else (256, found[token]))
    return {token: rank for rank, token in enumerate(inner)}


def joined(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Join the neighbours that make the token of the lowest rank, the first of several, until none do."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        found = [
            (ranks[pair], place)
            for place in range(len(parts) - 1)
            if (pair := parts[place] + parts[place + 1]) in ranks
        ]
        if not found:
            return [ranks[part] for part in parts]
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
