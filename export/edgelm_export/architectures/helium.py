"""Kyutai's Helium: a Llama that turns neighbouring dimensions."""

from __future__ import annotations

from edgelm_export.architectures import llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

HELIUM = Architecture(
    model_type="helium",
    defaults={
        "num_key_value_heads": 20,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
        "rope_theta": 1e5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=llama.to_model_config,
    features={"attention_output_bias": False},
    layout=TensorLayout(row_orders=llama.GGUF_ROW_ORDERS),
    gguf=None,
)
