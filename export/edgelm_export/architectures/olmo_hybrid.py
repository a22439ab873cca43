"""OLMo Hybrid: an OLMo 3 without windows, three of four layers of which have linear attention, behind norms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import hf_values, llama, qwen3_5
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_EVERY = 4  # the last layer of so many has attention, where config.json says nothing of them
_LINEAR = qwen3_5.LINEAR_ATTENTION
_PARTS = {"in_proj_z": "g_proj", "in_proj_b": "b_proj", "in_proj_a": "a_proj", "norm": "o_norm", "out_proj": "o_proj"}
_NAMES = {f"{_LINEAR}.{ours}": f"{_LINEAR}.{theirs}" for ours, theirs in _PARTS.items()}
# transformers reads these names too, and writes them, the last one also for the norm behind attention. It writes three
# parts of a convolution, whatever rows each has.
_ASSEMBLED = {
    f"{_LINEAR}.in_proj_qkv.weight": tuple(f"{_LINEAR}.{part}_proj.weight" for part in "qkv"),
    f"{_LINEAR}.conv1d.weight": tuple(f"{_LINEAR}.{part}_conv1d.weight" for part in "qkv"),
    "model.layers.{i}.input_layernorm.weight": ("model.layers.{i}.attention_layer_norm.weight",),
    "model.layers.{i}.post_attention_layernorm.weight": ("model.layers.{i}.feedforward_layer_norm.weight",),
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    by_number = hf_values.last_sees_all(layers, _EVERY, "linear_attention")
    if "full_attention" not in by_number:
        by_number[-1] = "full_attention"
    settings = values.get("rope_parameters") or values
    turns = not isinstance(settings, Mapping) or settings.get("rope_theta", 1.0) is not None
    config = llama.to_model_config(values)
    return dataclasses.replace(
        config,
        position="rope" if turns else "none",
        linear_allow_neg_eigval=hf_values.flag(values, "linear_allow_neg_eigval"),
        layer_types=tuple(hf_values.layer_types(values) or by_number),
        **_sizes(values, config),
    )


def _sizes(values: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Read the sizes of linear attention, or make them of those of attention."""
    heads = config.num_attention_heads
    keys = hf_values.whole_number(values, "linear_num_key_heads", heads)
    key = hf_values.whole_number(values, "linear_key_head_dim", 3 * config.hidden_size // (4 * max(keys, 1)))
    return {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": hf_values.whole_number(values, "linear_num_value_heads", heads),
        "linear_key_head_dim": key,
        "linear_value_head_dim": hf_values.whole_number(values, "linear_value_head_dim", 2 * key),
        "linear_conv_kernel_dim": hf_values.whole_number(values, "linear_conv_kernel_dim"),
    }


OLMO_HYBRID = Architecture(
    model_type="olmo_hybrid",
    defaults={
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 100257,
        "linear_conv_kernel_dim": 4,
        "linear_allow_neg_eigval": True,
    },
    fixed={"hidden_act": "silu"},  # the convolution of linear attention has it too
    read_config=_to_model_config,
    features={
        "norm_placement": "post",
        "linear_norm_placement": "pre",
        "linear_norm_eps": 1e-5,  # of the norm behind linear attention; in no config
        "mlp_bias": False,
        "qk_norm": True,
        "qk_norm_scope": "projection",
    },
    layout=TensorLayout(names=_NAMES, assembled=_ASSEMBLED),
    gguf=None,
)
