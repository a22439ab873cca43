"""Jais 2: layer norms, biases everywhere, and a squared relu without a gate."""

from __future__ import annotations

from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout

JAIS2 = Architecture(
    model_type="jais2",
    defaults={
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 150024,
    },
    renamed={"rms_norm_eps": "layer_norm_eps"},
    read_config=llama.to_model_config,
    features={"norm": "layer", "mlp_gated": False},
    gguf=GGUFFamily(
        architecture="jais2",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=TensorLayout(names=llama.GGUF_NAMES),
    ),
)
