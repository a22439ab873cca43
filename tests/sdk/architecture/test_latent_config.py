"""ModelConfig of latent attention: what its fields need of each other, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from model_features import LATENT, config_with

from edgelm.errors import ConfigError
from edgelm.memory.cache_layout import cache_layout

CONFIG = config_with({**LATENT, "q_lora_rank": 24})


def test_a_cache_keeps_one_head_of_a_token_once() -> None:
    assert CONFIG.kept_parts == ("key",)
    assert CONFIG.kv_bytes_per_token == CONFIG.num_hidden_layers * (16 + 32) * 4
    assert [buffer.shape(1, 5) for buffer in cache_layout(CONFIG)] == [(1, 1, 5, 48)] * CONFIG.num_hidden_layers
    assert CONFIG.rotary_dim == CONFIG.rotary_width("global") == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": None},
            "v_head_dim is 40, which needs a kv_lora_rank.",
        ),
        ({"kv_lora_rank": None}, "q_lora_rank is 24, which needs a kv_lora_rank."),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0; it must be a whole number from 1 to 2147483647."),
        ({"kv_lora_rank": True}, "kv_lora_rank is True; it must be a whole number from 1 to 2147483647."),
        ({"q_lora_rank": -1}, "q_lora_rank is -1; it must be a whole number from 1 to 2147483647."),
        ({"qk_nope_head_dim": None}, "qk_nope_head_dim is None; it must be a whole number from 1 to 2147483647."),
        ({"v_head_dim": 2**31}, "v_head_dim is 2147483648; it must be a whole number from 1 to 2147483647."),
        (
            {"num_key_value_heads": 2},
            "kv_lora_rank is 32, with num_key_value_heads 2, head_dim 48 and attention_mul",
        ),
        ({"head_dim": 32}, "kv_lora_rank is 32, with num_key_value_heads 1, head_dim 32 and attention_multiplier 0.2;"),
        ({"attention_multiplier": None}, "head_dim 48 and attention_multiplier None; it needs one head that is larger"),
        ({"position": "learned"}, "position is 'learned' and norm 'rms'; with a kv_lora_rank they must be 'rope' and"),
        (
            {"norm": "layer"},
            "position is 'rope' and norm 'layer'; with a kv_lora_rank they must be 'rope' and",
        ),
        ({"head_dim": 47}, "head_dim is 47, of which 15 turn; rope needs an even one."),
        ({"num_attention_heads": 40_000}, "num_attention_heads is 40000 and num_hidden_layers 2; at most 65536 heads"),
        ({"qk_norm": True}, "qk_norm is True, which no model with a kv_lora_rank has."),
        ({"attention_bias": True}, "attention_bias is True, which no model with a kv_lora_rank has."),
        ({"kv_cache": "int8"}, "kv_cache is 'int8', which no model with a kv_lora_rank has."),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which no model with a kv_lora_rank has."),
    ],
)
def test_what_latent_attention_needs_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        replace(CONFIG, **changes)
    assert message in str(raised.value)
