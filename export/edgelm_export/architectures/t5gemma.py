"""T5Gemma: two stacks of Gemma 2's blocks, each with an embedding of its own, the second looking at the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.gemma import GEMMA2
from edgelm_export.checkpoints.tensor_map import TensorLayout

# What transformers takes where a stack's part of config.json has no such key, and Gemma 2 has no default here.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def _stack_names(name: str) -> dict[str, str]:
    layer = f"model.{name}.layers.{{i}}"
    return {
        f"{layer}.input_layernorm": f"{layer}.pre_self_attn_layernorm",
        f"{layer}.post_attention_layernorm": f"{layer}.post_self_attn_layernorm",
    }


_LAYER = "model.decoder.layers.{i}"
_NAMES = {
    "model.embed_tokens": "model.decoder.embed_tokens",
    **_stack_names("encoder"),
    **_stack_names("decoder"),
    f"{_LAYER}.pre_cross_attention_layernorm": f"{_LAYER}.pre_cross_attn_layernorm",
    **{f"{_LAYER}.encoder_attn.{part}_proj": f"{_LAYER}.cross_attn.{part}_proj" for part in "qkvo"},
    f"{_LAYER}.post_cross_attention_layernorm": f"{_LAYER}.post_cross_attn_layernorm",
    "lm_head": "lm_head.out_proj",
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    encoder, decoder = _stack(values, "encoder"), _stack(values, "decoder")
    # transformers counts the tokens beside a query, each way, and here it is one of them.
    window = None if encoder.sliding_window is None else encoder.sliding_window + 1
    begin = hf_values.first_token_id(values, "decoder_start_token_id", "bos_token_id")
    return dataclasses.replace(
        decoder,
        encoder=dataclasses.replace(
            encoder, own_embedding=True, sliding_window=window, tie_word_embeddings=False, final_logit_softcapping=None
        ),
        decoder_start_token_id=decoder.bos_token_id if begin is None else begin,
        eos_token_ids=hf_values.token_ids(values, "eos_token_id") or decoder.eos_token_ids,
        tie_word_embeddings=hf_values.flag(values, "tie_word_embeddings", True),
    )


def _stack(values: Mapping[str, Any], name: str) -> ModelConfig:
    """Read the config of one stack.

    Raises:
        CheckpointError: it is no object, or a feature is not supported.
    """
    part = values.get(name) or {}
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.json: {name} is {part!r}; it must be an object that describes that stack.")
    config = GEMMA2.to_model_config({**_DEFAULTS, **part})
    return dataclasses.replace(config, model_type=str(values["model_type"]))


T5GEMMA = Architecture(model_type="t5gemma", read_config=_to_model_config, layout=TensorLayout(names=_NAMES), gguf=None)
