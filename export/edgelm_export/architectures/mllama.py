"""The text part of Llama 3.2 Vision: a Llama whose embedding has rows of images behind the last token of the head."""

from __future__ import annotations

import dataclasses

from edgelm_export.architectures.llama import LLAMA
from edgelm_export.tensor_map import TensorLayout

MLLAMA = dataclasses.replace(
    LLAMA,
    model_type="mllama_text_model",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    layout=TensorLayout(rows_behind=frozenset({"model.embed_tokens"})),
    gguf=None,
)
