"""Blenderbot, which talks: a BART with norms before each part and behind the last block, and positions from row 0."""

from __future__ import annotations

import dataclasses

from edgelm_export.architectures.bart import BART, names, to_model_config

BLENDERBOT = dataclasses.replace(
    BART,
    model_type="blenderbot",
    defaults={
        **BART.defaults,
        "vocab_size": 8008,
        "d_model": 2560,
        "max_position_embeddings": 128,
        "encoder_layers": 2,
        "decoder_layers": 24,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "decoder_start_token_id": 1,
        **{f"{stack}_attention_heads": 32 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 10240 for stack in ("encoder", "decoder")},
    },
    read_config=lambda values: to_model_config(values, norm_placement="pre", final_norm=True, embedding_norm=False),
    layout=dataclasses.replace(BART.layout, names=names("pre"), rows_before={}),
)
