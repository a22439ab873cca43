"""OPT and Galactica: layer norms, learned positions, and a relu, or for Galactica a gelu, without a gate."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER, _THEIRS = "model.layers.{i}", "model.decoder.layers.{i}"
_NAMES = {
    "model.embed_tokens": "model.decoder.embed_tokens",
    "model.embed_positions": "model.decoder.embed_positions",
    f"{_LAYER}.input_layernorm": f"{_THEIRS}.self_attn_layer_norm",
    **{f"{_LAYER}.self_attn.{part}_proj": f"{_THEIRS}.self_attn.{part}_proj" for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_THEIRS}.self_attn.out_proj",
    f"{_LAYER}.post_attention_layernorm": f"{_THEIRS}.final_layer_norm",
    f"{_LAYER}.mlp.up_proj": f"{_THEIRS}.fc1",
    f"{_LAYER}.mlp.down_proj": f"{_THEIRS}.fc2",
    "model.norm": "model.decoder.final_layer_norm",
}
_BEHIND = {
    f"{_LAYER}.post_attention_layernorm": f"{_THEIRS}.self_attn_layer_norm",
    f"{_LAYER}.post_feedforward_layernorm": f"{_THEIRS}.final_layer_norm",
}
_LAYOUT = TensorLayout(names=_NAMES, rows_before={"model.decoder.embed_positions": 2})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    size = hf_values.whole_number(values, "hidden_size")
    width = hf_values.whole_number(values, "word_embed_proj_dim", size)
    if width != size:
        raise CheckpointError(
            f"config.json: word_embed_proj_dim is {width!r:.60} (OPT 350M); supported is the hidden_size, {size}."
        )
    config = llama.to_model_config({**values, "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-5})
    has_biases, is_before = (hf_values.flag(values, key) for key in ("enable_bias", "do_layer_norm_before"))
    return dataclasses.replace(
        config,
        norm="layer" if hf_values.flag(values, "layer_norm_elementwise_affine") else "layer_plain",
        norm_placement="pre" if is_before else "residual",
        final_norm=is_before and not hf_values.flag(values, "_remove_final_layer_norm"),
        **hf_values.biases(has_biases),
    )


OPT = Architecture(
    model_type="opt",
    defaults={
        "intermediate_size": 3072,
        "hidden_act": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    renamed={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    read_config=_to_model_config,
    features={"position": "learned", "mlp_gated": False},
    layout_of=lambda config: (
        _LAYOUT if config.norm_placement == "pre" else dataclasses.replace(_LAYOUT, names=_NAMES | _BEHIND)
    ),
    gguf=None,  # llama.cpp does not know it
)
