"""ModernBERT's decoders (Ettin): windows in two of three layers, and what BERT has around its layers.

The embedding is normed, so that the first layer norms nothing before attention, and the head reads what a projection,
an activation and a norm make of the last norm's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gemma3, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "model.layers.{i}"
_NAMES = {
    "model.embed_tokens": "model.embeddings.tok_embeddings",
    "model.embed_norm": "model.embeddings.norm",
    f"{_BLOCK}.input_layernorm": f"{_BLOCK}.attn_norm",
    **{f"{_BLOCK}.self_attn.{part}_proj": f"{_BLOCK}.attn.{part}_proj" for part in "qkv"},
    f"{_BLOCK}.self_attn.o_proj": f"{_BLOCK}.attn.Wo",
    f"{_BLOCK}.post_attention_layernorm": f"{_BLOCK}.mlp_norm",
    f"{_BLOCK}.mlp.gate_proj": f"{_BLOCK}.mlp.Wi",
    f"{_BLOCK}.mlp.up_proj": f"{_BLOCK}.mlp.Wi",
    f"{_BLOCK}.mlp.down_proj": f"{_BLOCK}.mlp.Wo",
    "model.norm": "model.final_norm",
    "model.head_dense": "lm_head.dense",
    "model.head_norm": "lm_head.norm",
    "lm_head": "decoder",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    _refuse_others(values)
    theta, local_theta = (hf_values.number(values, f"{kind}_rope_theta", 1e4) for kind in ("global", "local"))
    values |= {"rope_theta": theta, "rope_local_base_freq": local_theta}
    values |= gemma3.rotations(values, theta, local_theta)
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    pattern = hf_values.bounded(values, "global_attn_every_n_layers")
    kinds = hf_values.first_sees_all(layers, pattern)
    # local_attention counts both sides of a token. transformers writes its half too, and reads that one first.
    window = hf_values.whole_number(values, "sliding_window", hf_values.bounded(values, "local_attention") // 2)
    windows = hf_values.windows(values, window, kinds)
    return dataclasses.replace(
        llama.to_model_config({**values, "num_key_value_heads": None, "head_dim": None}),
        **windows,
        norm="layer" if hf_values.flag(values, "norm_bias") else "layer_no_bias",
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4) if windows else None,
        lm_head_bias=hf_values.flag(values, "decoder_bias"),
    )


def _refuse_others(values: Mapping[str, Any]) -> None:
    """Refuse what no published model has.

    Raises:
        CheckpointError: the head's projection has a bias or another activation, or the rotations are scaled.
    """
    others = {
        "classifier_bias": hf_values.flag(values, "classifier_bias"),
        "classifier_activation": values["classifier_activation"] != values["hidden_act"],
        "rope_scaling": values.get("rope_scaling") is not None,
    }
    for key, is_other in others.items():
        if is_other:
            raise CheckpointError(
                f"config.json: {key} is {values[key]!r:.80}; supported are a head whose projection has no bias and the "
                "activation of all layers, and rotations without scaling."
            )


MODERNBERT_DECODER = Architecture(
    model_type="modernbert-decoder",
    defaults={
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "classifier_activation": "gelu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "decoder_bias": True,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
    },
    renamed={"rms_norm_eps": "norm_eps", "hidden_act": "hidden_activation"},
    read_config=_to_model_config,
    features={"embedding_norm": True, "layers_without_input_norm": (0,), "head_transform": True},
    layout=TensorLayout(names=_NAMES),
    gguf=None,
)
