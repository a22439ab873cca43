"""Arcee's foundation models (AFM 4.5B): a Llama whose feed-forward squares a relu, without a gate."""

from __future__ import annotations

from edgelm_export.architectures import llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily

ARCEE = Architecture(
    model_type="arcee",
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    read_config=llama.to_model_config,
    features={"mlp_gated": False},
    gguf=GGUFFamily(architecture="arcee", layout=llama.GGUF_LAYOUT),
)
