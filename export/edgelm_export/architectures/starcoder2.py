"""StarCoder 2: a Llama with layer norms and biases everywhere, and a feed-forward without a gate."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.c_fc",
    "model.layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.c_proj",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    has_biases = hf_values.flag(values, "use_bias")
    return dataclasses.replace(
        config,
        **hf_values.biases(has_biases),
        sliding_window=hf_values.optional_whole_number(values, "sliding_window"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, norm="layer")
    return values | {"use_bias": values["attention_bias"]}


STARCODER2 = Architecture(
    model_type="starcoder2",
    defaults={
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    renamed={"rms_norm_eps": "norm_epsilon"},
    read_config=_to_model_config,
    features={"norm": "layer", "mlp_gated": False},
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="starcoder2", to_hf_config=_gguf_to_hf_config, layout=TensorLayout(names=llama.GGUF_NAMES)
    ),
)
