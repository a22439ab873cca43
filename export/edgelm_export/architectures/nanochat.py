"""nanochat: norms without weights, one of them of the embeddings; squared ReLU; heads that turn the other way round."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.fc1",
    "model.layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.fc2",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    hf_values.check_turns_alone(config.rope_scaling)
    return dataclasses.replace(
        config, final_logit_softcapping=hf_values.optional_number(values, "final_logit_softcapping")
    )


NANOCHAT = Architecture(
    model_type="nanochat",
    defaults={
        "hidden_act": "relu2",
        "final_logit_softcapping": 15.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    read_config=_to_model_config,
    features={
        "norm": "rms_plain",
        "embedding_norm": True,
        "mlp_gated": False,
        "mlp_bias": False,
        # It norms after the rotation, which changes no length: without weights, that is to norm before it.
        "qk_norm": True,
    },
    layout=TensorLayout(
        names=_NAMES,
        row_orders={f"model.layers.{{i}}.self_attn.{part}_proj": "swapped halves" for part in "qk"},
    ),
    gguf=None,
)
