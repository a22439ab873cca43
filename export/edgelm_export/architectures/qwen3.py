"""Qwen3, the dense models: a Llama that norms each query and key head."""

from __future__ import annotations

from edgelm_export.architectures import llama, qwen2
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout

QWEN3 = Architecture(
    model_type="qwen3",
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    read_config=qwen2.to_model_config,
    features={"mlp_bias": False, "qk_norm": True},
    gguf=GGUFFamily(
        architecture="qwen3",
        layout=TensorLayout(names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS),
        also_called=("qwen3vl",),
    ),
)
