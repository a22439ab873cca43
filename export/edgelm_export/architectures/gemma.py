"""Gemma, the first, and CodeGemma: a Llama with norms of 1 + weight and an embedding that is scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout


def refuse_sight_of_later_tokens(values: Mapping[str, Any]) -> None:
    """Refuse what no Gemma that writes text has.

    Raises:
        CheckpointError: a token sees later ones too.
    """
    if values.get("use_bidirectional_attention"):
        raise CheckpointError("config.json: use_bidirectional_attention is true; supported is causal attention alone.")


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    refuse_sight_of_later_tokens(values)
    if values["hidden_act"] == "gelu":  # so the first release says, and means the tanh form
        values["hidden_act"] = "gelu_pytorch_tanh"
    config = llama.to_model_config(values)
    return dataclasses.replace(config, embedding_multiplier=config.hidden_size**0.5)


GEMMA = Architecture(
    model_type="gemma",
    defaults={
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    read_config=_to_model_config,
    features={"norm": "rms_offset", "mlp_bias": False},
    gguf=GGUFFamily(architecture="gemma", layout=TensorLayout(names=llama.GGUF_NAMES, norms_plus_one=True)),
)
