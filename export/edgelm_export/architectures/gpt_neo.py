"""GPT-Neo and TinyStories: a GPT-2 of which every second layer attends in a window, and whose scores are not scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gpt2, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_KINDS = {"global": "full_attention", "local": "sliding_attention"}

_BLOCK = "transformer.h.{i}"
_NAMES = {
    **gpt2.NAMES,
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_BLOCK}.attn.attention.{part}_proj" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attn.attention.out_proj",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    size = hf_values.whole_number(values, "hidden_size")
    sizes = {
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": hf_values.whole_number(values, "intermediate_size", 4 * size),
    }
    config = llama.to_model_config(values | sizes)
    kinds = _kinds(values, config.num_hidden_layers)
    return dataclasses.replace(
        config,
        **hf_values.windows({}, hf_values.whole_number(values, "window_size"), kinds),
    )


def _kinds(values: Mapping[str, Any], layers: int) -> list[str]:
    """Read the kinds of layers: one by one, or each as often as the number beside it says: [[["global", "local"], 12]].

    Raises:
        CheckpointError: they are not of that form, or not for as many layers as there are.
    """
    found: list[str] = []
    one_by_one = values.get("attention_layers")
    try:
        for kinds, times in values["attention_types"] if one_by_one is None else [[one_by_one, 1]]:
            found += [_KINDS[kind] for kind in kinds] * min(times, layers // max(len(kinds), 1) + 1)
            if len(found) > layers:  # whatever else a hostile list holds
                break
    except (TypeError, ValueError, KeyError):
        found = []
    if len(found) != layers:
        raise CheckpointError(
            f"config.json: attention_types is {values['attention_types']!r:.60}, attention_layers {one_by_one!r:.60}; "
            f"one must say global or local of each of the {layers} layers."
        )
    return found


GPT_NEO = Architecture(
    model_type="gpt_neo",
    defaults={
        "max_position_embeddings": 2048,
        "attention_types": [[["global", "local"], 12]],
        "window_size": 256,
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    renamed={
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    read_config=_to_model_config,
    features={
        "norm": "layer",
        "position": "learned",
        "mlp_gated": False,
        "mlp_bias": True,
        "attention_bias": False,
        "attention_output_bias": True,
        "attention_multiplier": 1.0,
    },
    layout=TensorLayout(
        names=_NAMES,
        # The causal mask, which older versions of transformers stored.
        ignored=frozenset(f"{_BLOCK}.attn.attention.{name}" for name in ("bias", "masked_bias")),
    ),
    gguf=None,  # llama.cpp does not know it
)
