"""Granite 4, the models that are a Granite 3 under another name: attention in every layer, and no experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import granite, hf_values, llama
from edgelm_export.tensor_map import TensorLayout

_ATTENTION = ("attention", "full_attention")  # as transformers 4 and 5 write it
_NAMES = {name: name for name in llama.GGUF_NAMES} | {
    "model.layers.{i}.mlp.gate_proj": "model.layers.{i}.shared_mlp.input_linear",
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.shared_mlp.input_linear",
    "model.layers.{i}.mlp.down_proj": "model.layers.{i}.shared_mlp.output_linear",
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    kinds = values.get("layer_types")
    if not isinstance(kinds, list) or not kinds or any(kind not in _ATTENTION for kind in kinds):
        raise CheckpointError(
            f"config.json: layer_types is {kinds!r:.80}; supported is attention in every layer, so take a Granite 4 "
            "without H in its name: the others have layers of Mamba 2."
        )
    experts = hf_values.whole_number(values, "num_local_experts", 8)
    if experts:
        raise CheckpointError(
            f"config.json: num_local_experts is {experts}; experts beside a shared one are not supported."
        )
    config = granite.to_model_config(
        {**values, "intermediate_size": hf_values.whole_number(values, "shared_intermediate_size", 1024)}
    )
    turns = values.get("position_embedding_type") == "rope"
    return dataclasses.replace(
        config,
        model_type="granitemoehybrid",
        layers_without_rope=() if turns else tuple(range(config.num_hidden_layers)),
        mlp_bias=False,
    )


# llama.cpp's converter calls such a model "granite", so its GGUF files are read by that row, the first of that name.
GRANITE_HYBRID = dataclasses.replace(
    granite.GRANITE,
    model_type="granitemoehybrid",
    to_model_config=_to_model_config,
    layout=TensorLayout(names=_NAMES),
)
