"""OpenAI's first GPT: a GPT-2 that norms the residual stream behind each part of a block."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gpt2

_LAYER = "model.layers.{i}"
_OTHERS = {
    "model.embed_tokens": "transformer.tokens_embed",
    "model.embed_positions": "transformer.positions_embed",
    f"{_LAYER}.post_attention_layernorm": "transformer.h.{i}.ln_1",
    f"{_LAYER}.post_feedforward_layernorm": "transformer.h.{i}.ln_2",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    # It computes gelu by a tanh, whatever that name means elsewhere.
    activation = "gelu_new" if values.get("afn", "gelu") == "gelu" else values["afn"]
    return gpt2.GPT2.to_model_config({**values, "n_inner": None, "hidden_act": activation})


OPENAI_GPT = dataclasses.replace(
    gpt2.GPT2,
    model_type="openai-gpt",
    defaults={"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None},
    fixed={},
    renamed={},
    read_config=_to_model_config,
    features={"norm_placement": "residual", "final_norm": False},
    layout=dataclasses.replace(gpt2.GPT2.layout, names=gpt2.NAMES | _OTHERS),
    mlx=None,
    gguf=None,  # llama.cpp does not know it
)
