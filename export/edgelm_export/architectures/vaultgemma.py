"""VaultGemma: a Gemma 2 whose norms stand before each part alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gemma2, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

_NAMES = llama.NAMES | {"model.layers.{i}.post_attention_layernorm": "model.layers.{i}.pre_feedforward_layernorm"}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = gemma2.GEMMA2.to_model_config(values)
    return dataclasses.replace(config, norm_placement="pre")


VAULTGEMMA = Architecture(
    model_type="vaultgemma", read_config=_to_model_config, layout=TensorLayout(names=_NAMES), gguf=None
)
