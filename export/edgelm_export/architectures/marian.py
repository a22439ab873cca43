"""Marian, the translators of OPUS-MT: a BART with fixed sinusoids and without a norm of the embeddings."""

from __future__ import annotations

import dataclasses

from edgelm_export.architectures.bart import BART, to_model_config

# Computed, not learned, but older versions of transformers stored them.
_SINUSOIDS = frozenset({"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"})

MARIAN = dataclasses.replace(
    BART,
    model_type="marian",
    defaults={
        **BART.defaults,
        "vocab_size": 58101,
        "decoder_start_token_id": 58100,
        "pad_token_id": 58100,
        "bos_token_id": [],  # it begins with its padding, and BART's <s> is nothing to it
        "eos_token_id": 0,
    },
    read_config=lambda values: to_model_config(values, position="sinusoidal_halves", embedding_norm=False),
    layout=dataclasses.replace(BART.layout, ignored=_SINUSOIDS, rows_before={}),
)
