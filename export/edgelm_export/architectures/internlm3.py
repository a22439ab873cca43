"""InternLM 3: a Llama with other names for its two switches of biases."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(llama.to_model_config(values), attention_output_bias=hf_values.flag(values, "mlp_bias"))


# llama.cpp's converter calls it "llama", so its GGUF files are read by that row, the first of that name.
INTERNLM3 = dataclasses.replace(
    llama.LLAMA,
    model_type="internlm3",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # As the model's own code has them: of queries, keys and values, and of all else.
    renamed={"attention_bias": "qkv_bias", "mlp_bias": "bias"},
    read_config=_to_model_config,
)
