"""OLMo 2: a Llama with norms behind each part, and of all query and of all key heads together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma2 import GGUF_NAMES
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-5, "eos_token_id": 50279}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**_DEFAULTS, **values})
    return dataclasses.replace(
        config, model_type="olmo2", norm_placement="post", qk_norm=True, qk_norm_scope="projection", mlp_bias=False
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "olmo2")
    return {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", **values}


OLMO2 = Architecture(
    model_type="olmo2",
    to_model_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="olmo2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=GGUF_NAMES | llama.GGUF_QK_NORMS),
    ),
)
