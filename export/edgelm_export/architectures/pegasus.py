"""Pegasus, which summarizes: a Marian with norms before each part and behind the last block."""

from __future__ import annotations

import dataclasses

from edgelm_export.architectures.bart import BART, names, to_model_config
from edgelm_export.architectures.marian import MARIAN

PEGASUS = dataclasses.replace(
    MARIAN,
    model_type="pegasus",
    defaults={**BART.defaults, "decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": [], "eos_token_id": 1},
    read_config=lambda values: to_model_config(
        values, norm_placement="pre", final_norm=True, embedding_norm=False, position="sinusoidal_halves"
    ),
    layout=dataclasses.replace(MARIAN.layout, names=names("pre")),
)
