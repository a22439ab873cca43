"""Granite 4, the models that are a Granite 3 under another name: those with attention in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import granite, hf_values
from edgelm_export.tensor_map import TensorLayout

_ATTENTION = ("attention", "full_attention")  # as transformers 4 and 5 write it
_DENSE = ("gate_proj", "up_proj", "down_proj")
# Without experts, what they share is all there is.
_NAMES = granite.NAMES | {
    f"model.layers.{{i}}.mlp.{part}": granite.NAMES[f"model.layers.{{i}}.mlp.shared_experts.{part}"] for part in _DENSE
}
_MLX_NAMES = granite.MLX_NAMES | {f"model.layers.{{i}}.mlp.{part}": f"model.layers.{{i}}.mlp.{part}" for part in _DENSE}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    kinds = values.get("layer_types")
    if not isinstance(kinds, list) or not kinds or any(kind not in _ATTENTION for kind in kinds):
        raise CheckpointError(
            f"config.json: layer_types is {kinds!r:.80}; supported is attention in every layer, so take a Granite 4 "
            "without H in its name: the others have layers of Mamba 2."
        )
    values = {"shared_intermediate_size": 1024, "num_local_experts": 8, **values}
    if hf_values.whole_number(values, "num_local_experts"):
        config = dataclasses.replace(granite.to_model_config(values), **granite.expert_fields(values))
    else:
        config = granite.to_model_config({**values, "intermediate_size": values["shared_intermediate_size"]})
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
    mlx=TensorLayout(names=_MLX_NAMES),
)
