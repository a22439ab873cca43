"""What config.json says of the families whose layers, norms or queries are unlike a Llama's."""

from __future__ import annotations

from typing import Any

import pytest
from config_values import SIZES

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.architectures.lfm2 import LFM2

MOBILE_LLM = {"num_key_value_heads": 2, "moe_layers": [], "no_rope_layers": [1, 1], "attention_chunk_size": None}


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("cohere", {"logit_scale": 0}, r"logit_scale is 0.0; it must be above 0"),
        ("cohere2", {"sliding_window": None}, r"layer_types has 'sliding_attention', and sliding_window is null"),
        ("ministral3", {"rope_parameters": [1]}, r"the rope settings are \[1\]; they must be an object"),
        (
            "llama4_text",
            MOBILE_LLM | {"moe_layers": None},
            r"moe_layers is None and interleave_moe_layer_step 1; of Llama 4, models without experts",
        ),
        ("llama4_text", MOBILE_LLM | {"moe_layers": [1]}, r"moe_layers is \[1\] and interleave_moe_layer_step 1"),
        (
            "llama4_text",
            MOBILE_LLM | {"attention_chunk_size": 8192},
            r"attention_chunk_size is 8192, and max_position_embeddings 131072; .*Set max_position_embeddings to",
        ),
        (
            "llama4_text",
            MOBILE_LLM | {"layer_types": ["conv"]},
            r"layer_types has 'conv'; known are full_attention and",
        ),
        (
            "llama4_text",
            MOBILE_LLM | {"no_rope_layers": [1, 0]},
            r"layers 1 turn no heads .*use_qk_norm True and attn_temperature_tuning True; .* both must be false",
        ),
        (
            "llama4_text",
            MOBILE_LLM | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            r"rope type 'yarn' is not supported before a norm; supported: default, linear, dynamic, llama3",
        ),
    ],
)
def test_what_no_row_is_written_for_is_refused(model_type: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ARCHITECTURES[model_type].to_model_config(SIZES | {"model_type": model_type} | values)


def test_a_ministral_3_may_have_queries_that_do_not_grow() -> None:
    rope = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0}
    config = ARCHITECTURES["ministral3"].to_model_config(SIZES | {"rope_parameters": rope, "num_key_value_heads": 2})
    assert config.llama_4_scaling_beta is None


def lfm2(**values: Any) -> ModelConfig:
    return LFM2.to_model_config(SIZES | {"model_type": "lfm2", "num_key_value_heads": 2} | values)


def test_an_lfm2_is_read_by_the_keys_of_its_first_config_too() -> None:
    newer = lfm2(layer_types=["conv", "full_attention"], intermediate_size=6656, tie_word_embeddings=True)
    assert newer.intermediate_size == 4608  # two thirds, in steps of 256
    assert newer == lfm2(full_attn_idxs=[1], block_ff_dim=6656, tie_embedding=True)
    assert not lfm2(full_attn_idxs=[1], tie_embedding=False).tie_word_embeddings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"full_attn_idxs": 1}, r"config.json: full_attn_idxs is 1; it must be a list of layers"),
        ({"full_attn_idxs": []}, r"layer_types has 'conv' alone; one layer with attention to all tokens is needed"),
        ({"block_ff_dim": 0}, r"block_ff_dim is 0; it must be from 1 to"),
        (
            {"block_ffn_dim_multiplier": 1e300},
            r"block_ffn_dim_multiplier is 1e\+300; it must be above 0 and below 1000",
        ),
        ({"block_multiple_of": 0}, r"block_multiple_of is 0; it must be from 1 to"),
        ({"conv_L_cache": "3"}, r"conv_L_cache is '3'; it must be a whole number"),
    ],
)
def test_an_lfm2_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message):
        lfm2(**values)
