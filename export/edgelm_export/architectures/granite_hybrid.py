"""Granite 4: a Granite 3, most layers of which have Mamba 2 in the place of attention where it has an H in its name."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, granite, hf_values, llama, mamba2
from edgelm_export.architectures.architecture import GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

# Without experts, what they share is all there is.
_NAMES = (
    granite.NAMES
    | mamba2.names(mamba2.LAYER)
    | {
        f"model.layers.{{i}}.mlp.{part}": granite.NAMES[f"model.layers.{{i}}.mlp.shared_experts.{part}"]
        for part in ("gate_proj", "up_proj", "down_proj")
    }
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = mamba2.kinds_of(hf_values.layer_types(values) or ["mamba"] * layers)
    if hf_values.whole_number(values, "num_local_experts"):
        config = dataclasses.replace(granite.GRANITE.to_model_config(values), **granite.expert_fields(values))
    else:
        config = granite.GRANITE.to_model_config({**values, "intermediate_size": values["shared_intermediate_size"]})
    if "mamba2" in kinds:
        mamba2.refuse_other_activations(config)
    turns = values.get("position_embedding_type") == "rope"
    return dataclasses.replace(
        config,
        layers_without_rope=() if turns else tuple(range(config.num_hidden_layers)),
        **({"layer_types": kinds, **mamba2.fields(values)} if "mamba2" in kinds else {}),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    name = "granitehybrid"
    header, layers = mamba2.gguf_values(header)
    keys: GGUFKeys = granite.GGUF_MOE_KEYS
    if f"{name}.expert_count" not in header.metadata:
        keys = dict.fromkeys(keys)
    values = granite.gguf_values(header, {**mamba2.GGUF_KEYS, **keys})
    turns = header.metadata.get(f"{name}.rope.scaling.finetuned") is not False
    return {
        "num_local_experts": 0,
        "shared_intermediate_size": values["intermediate_size"],
        **values,
        **layers,
        "position_embedding_type": "rope" if turns else None,
    }


# llama.cpp's converter calls one without Mamba "granite": that row reads its GGUF files.
GRANITE_HYBRID = dataclasses.replace(
    granite.GRANITE,
    model_type="granitemoehybrid",
    defaults={
        "shared_intermediate_size": 1024,
        "num_local_experts": 8,
        **mamba2.DEFAULTS,
    },
    read_config=_to_model_config,
    features={"mlp_bias": False},
    layout=TensorLayout(names=_NAMES),
    mlx=TensorLayout(
        names=granite.MLX_NAMES | mamba2.names(mamba2.LAYER),
        ones_elsewhere=frozenset({"model.layers.{i}.mamba.conv1d.weight"}),
    ),
    gguf=GGUFFamily(
        architecture="granitehybrid",
        to_hf_config=_gguf_to_hf_config,
        layout=mamba2.gguf_layout(experts.GGUF_NAMES | mamba2.GGUF_NAMES, llama.GGUF_ROW_ORDERS),
    ),
)
