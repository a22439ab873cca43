"""IQuest-Coder V1: a Llama under a name of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import llama, olmo


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    olmo.refuse_clipping(values)
    if values.get("use_sliding_window"):  # which the models' own code knows, and none of them has
        raise CheckpointError("config.json: use_sliding_window is true; of IQuest-Coder, windows are not supported.")
    return llama.to_model_config(values)


# llama.cpp's converter calls it "llama", so its GGUF files are read by that row, the first of that name.
IQUESTCODER = dataclasses.replace(
    llama.LLAMA,
    model_type="iquestcoder",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=_to_model_config,
)
