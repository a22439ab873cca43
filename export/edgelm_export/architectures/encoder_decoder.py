"""What T5, BART and those built like it have in common: two stacks of one size, and how an answer begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values


def pair(values: Mapping[str, Any], encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> ModelConfig:
    """Return the config of a decoder with its encoder.

    encoder, decoder: fields of ModelConfig for the two stacks.

    Raises:
        CheckpointError: the folder has no encoder and decoder, or its vocabularies are two.
    """
    if values.get("is_encoder_decoder") is False:
        raise CheckpointError(
            f"config.json: is_encoder_decoder is false; of {values.get('model_type')} models edgelm reads those with "
            "both stacks."
        )
    vocabulary, of_decoder = hf_values.whole_number(values, "vocab_size"), values.get("decoder_vocab_size")
    if of_decoder not in (None, vocabulary) or values.get("share_encoder_decoder_embeddings") is False:
        raise CheckpointError(
            f"config.json: vocab_size is {vocabulary}, decoder_vocab_size {of_decoder!r} and "
            f"share_encoder_decoder_embeddings {values.get('share_encoder_decoder_embeddings')!r}; supported is one "
            "embedding of one vocabulary for both stacks."
        )
    shared = {
        "model_type": values["model_type"],
        "vocab_size": vocabulary,
        "hidden_size": hf_values.whole_number(values, "d_model"),
    }
    return ModelConfig(
        **shared,
        **decoder,
        encoder=ModelConfig(**shared, **encoder),
        bos_token_id=hf_values.first_token_id(values, "bos_token_id"),
        eos_token_ids=hf_values.token_ids(values, "eos_token_id"),
        decoder_start_token_id=hf_values.first_token_id(values, "decoder_start_token_id", "pad_token_id"),
        forced_bos_token_id=hf_values.first_token_id(values, "forced_bos_token_id"),
        suppressed_token_ids=_suppressed(values),
    )


def _suppressed(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the bad words of one token: Marian's padding, which has a logit of zero and would win."""
    words = values.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and len(word) == 1 for word in words):
        raise CheckpointError(
            f"config.json: bad_words_ids is {words!r}; supported is a list of single tokens, such as [[58100]]."
        )
    return hf_values.token_ids({"bad_words_ids": [word[0] for word in words]}, "bad_words_ids")
