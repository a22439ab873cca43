"""Gemma 1 (with CodeGemma) and 2, VaultGemma: norms of 1 + weight, and an embedding that is scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW, GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout


def refuse_sight_of_later_tokens(values: Mapping[str, Any]) -> None:
    """Refuse what no Gemma that writes text has.

    Raises:
        CheckpointError: a token sees later ones too.
    """
    if sight := values.get("use_bidirectional_attention"):
        raise CheckpointError(
            f"config.json: use_bidirectional_attention is {sight!r:.60}; supported is causal attention alone."
        )


def _to_gemma_config(values: dict[str, Any]) -> ModelConfig:
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
    read_config=_to_gemma_config,
    features={"norm": "rms_offset", "mlp_bias": False},
    gguf=GGUFFamily(architecture="gemma", layout=TensorLayout(names=llama.GGUF_NAMES, norms_plus_one=True)),
)


# Gemma 2: norms on both sides, soft-caps, and a window in every second layer. VaultGemma is one whose norms stand
# before each part alone.
GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
# The 27B model alone scales scores by hidden_size / heads; llama.cpp too knows it by its number of layers.
_LAYERS_OF_27B = 46


def to_gemma2_config(values: Mapping[str, Any]) -> ModelConfig:
    """Read config.json's values, with every default filled in, as those of a Gemma.

    Raises:
        CheckpointError: a token sees later ones too.
    """
    refuse_sight_of_later_tokens(values)
    config = llama.to_model_config(values)
    window = hf_values.optional_whole_number(values, "sliding_window")
    return dataclasses.replace(
        config,
        norm="rms_offset",
        norm_placement="both",
        hidden_act=hf_values.activation(values, "gelu_pytorch_tanh", "hidden_activation"),
        mlp_bias=False,
        embedding_multiplier=config.hidden_size**0.5,
        attention_multiplier=hf_values.bounded(values, "query_pre_attn_scalar") ** -0.5,
        attn_logit_softcapping=hf_values.optional_number(values, "attn_logit_softcapping"),
        final_logit_softcapping=hf_values.optional_number(values, "final_logit_softcapping"),
        **hf_values.windows(values, window, hf_values.last_sees_all(config.num_hidden_layers, 2)),
    )


def gguf_values(header: GGUFHeader, layers_of_27b: int, keys: GGUFKeys) -> dict[str, Any]:
    """Make the values of config.json that Gemma 2 and 3 share; llama.cpp leaves the scale of scores to its reader."""
    values = gguf_header.to_hf_config(header, {**WINDOW, **keys})
    scalar = values["head_dim"]
    if values["num_hidden_layers"] == layers_of_27b:
        scalar = values["hidden_size"] // values["num_attention_heads"]
    return values | {"query_pre_attn_scalar": scalar}


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    # The first files have none of these.
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    keys: GGUFKeys = {key: (key, default) for key, default in caps.items()}
    return gguf_values(header, _LAYERS_OF_27B, {"attention.sliding_window": ("sliding_window", 4096), **keys})


GEMMA2 = Architecture(
    model_type="gemma2",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    read_config=to_gemma2_config,
    gguf=GGUFFamily(
        architecture="gemma2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=GGUF_NAMES, norms_plus_one=True),
    ),
)
VAULTGEMMA = dataclasses.replace(
    GEMMA2,
    model_type="vaultgemma",
    features={"norm_placement": "pre"},
    layout=TensorLayout(
        names={"model.layers.{i}.post_attention_layernorm": "model.layers.{i}.pre_feedforward_layernorm"}
    ),
    gguf=None,
)
