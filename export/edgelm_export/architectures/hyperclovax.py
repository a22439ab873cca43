"""HyperCLOVA X SEED Think: Granite's multipliers, and norms on both sides of each part; the smaller ones are Llamas."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import granite, hf_values
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER = "model.layers.{i}"
_NAMES = {
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.post_norm1",
    f"{_LAYER}.pre_feedforward_layernorm": f"{_LAYER}.post_attention_layernorm",
    f"{_LAYER}.post_feedforward_layernorm": f"{_LAYER}.post_norm2",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    scale = hf_values.number(values, "logits_scaling", 1.0)  # which multiplies here
    if not scale > 0:
        raise CheckpointError(f"config.json: logits_scaling is {scale}; it must be above 0.")
    config = granite.GRANITE.to_model_config({**values, "logits_scaling": 1 / scale})
    return dataclasses.replace(
        config,
        attention_multiplier=hf_values.number(values, "attention_multiplier", config.head_dim**-0.5),
        norm_placement="both" if hf_values.flag(values, "use_post_norm") else "pre",
    )


HYPERCLOVAX = Architecture(
    model_type="hyperclovax",
    defaults={"use_post_norm": True},
    read_config=_to_model_config,
    # Without norms behind the parts it is a Granite.
    layout_of=lambda config: TensorLayout(names=_NAMES if config.norm_placement == "both" else {}),
    gguf=None,
)
