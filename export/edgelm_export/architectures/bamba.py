"""Bamba: a Llama, most layers of which have Mamba 2 in the place of attention; heads turn by half."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama, mamba2
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

# What follows attention, or Mamba 2, is called otherwise than in a Llama, as in Falcon-H1.
NAMES = {
    **{name: name.replace(".mlp.", ".feed_forward.") for name in llama.GGUF_NAMES if ".mlp." in name},
    "model.layers.{i}.post_attention_layernorm": "model.layers.{i}.pre_ff_layernorm",
    "model.norm": "model.final_layernorm",
    **mamba2.names(mamba2.LAYER),
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    # Of a head one half turns, whatever is beside the settings of rope.
    values = {**values, "partial_rotary_factor": 0.5}
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    attending = values.get("attn_layer_indices") or []
    if not isinstance(attending, list) or not all(isinstance(layer, int) for layer in attending):
        raise CheckpointError(f"config.json: attn_layer_indices is {attending!r:.60}; it must be a list of layers.")
    config = llama.to_model_config(values, partial=0.5)
    mamba2.refuse_other_activations(config)
    kinds = ["full_attention" if layer in attending else "mamba2" for layer in range(layers)]
    fields = mamba2.fields(values) if "mamba2" in kinds else {}
    return dataclasses.replace(config, layer_types=tuple(kinds), **fields)


# Of its files llama.cpp turns other pairs of a head than transformers: those of a head that turns as a whole.
BAMBA = Architecture(
    model_type="bamba",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **mamba2.DEFAULTS,
    },
    read_config=_to_model_config,
    layout=TensorLayout(names=NAMES),
    gguf=None,
)
