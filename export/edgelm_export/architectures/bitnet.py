"""BitNet b1.58: a Llama with norms before its last projections, whose weights are -1, 0 and 1 times a scale."""

from __future__ import annotations

from edgelm_export.architectures import llama
from edgelm_export.architectures.architecture import Architecture

# llama.cpp's "bitnet" is another model, with silu; the 2B's files have a type of tensor that it does not know.
BITNET = Architecture(
    model_type="bitnet",
    defaults={
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "hidden_act": "relu2",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    read_config=llama.to_model_config,
    features={"sub_norms": True, "mlp_bias": False},
    gguf=None,
)
