"""ModelConfig of several residual streams: what its fields need of each other, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from model_features import LINEAR, STREAMS, config_with

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError

CONFIG = config_with(STREAMS)


def test_a_config_of_streams_comes_back_from_json() -> None:
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert (CONFIG.per_layer_rows, replace(CONFIG, vocab_size_per_layer_input=None).per_layer_rows) == (200, 320)
    # The quantiles of a normal distribution, from a table.
    assert CONFIG.gate_cutoff(0) == pytest.approx(1.2815516)
    assert CONFIG.gate_cutoff(1) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"altup_num_inputs": 0}, "altup_num_inputs is 0; it must be a whole number from 1 to 64."),
        ({"altup_num_inputs": 65}, "altup_num_inputs is 65; it must be a whole number from 1 to 64."),
        ({"laurel_rank": True}, "laurel_rank is True; it must be a whole number from 0 to 2147483647."),
        ({"vocab_size_per_layer_input": 0}, "vocab_size_per_layer_input is 0; it must be a whole number from 1 to"),
        ({"activation_sparsity_pattern": (0.9,)}, "activation_sparsity_pattern has 1 entries; the model has 2 layers."),
        (
            {"activation_sparsity_pattern": (0.9, 1.0)},
            "activation_sparsity_pattern has 1.0; it must be from 0 to below",
        ),
        (
            {"activation_sparsity_pattern": (0.9, "x")},
            "activation_sparsity_pattern has 'x'; it must be from 0 to below",
        ),
        ({"mlp_gated": False}, "activation_sparsity_pattern is set, which is for gated feed-forwards without experts."),
        ({"hidden_size_per_layer_input": 0}, "altup_num_inputs is 3; it needs a hidden_size_per_layer_input."),
        ({"altup_num_inputs": 1}, "altup_correct_scale is true, which needs altup_num_inputs of 2 or more."),
        ({"altup_correct_scale": 1}, "altup_correct_scale is 1; it must be true or false."),
        ({"layer_scalar": True}, "layer_scalar is True, which no model with altup_num_inputs 3 has."),
        ({"norm": "layer"}, "norm is 'layer', which no model with altup_num_inputs 3 has."),
        ({"residual_multiplier": 0.5}, "residual_multiplier is 0.5, which no model with altup_num_inputs 3 has."),
        ({"norm_placement": "post"}, "norm_placement is 'post', which no model with altup_num_inputs 3 has."),
        (
            {"altup_num_inputs": 1, "altup_correct_scale": False, "parallel_residual": True},
            "parallel_residual is True, which no model with laurel_rank 8 has.",
        ),
        (
            {"layer_types": ("linear_attention", "full_attention"), **LINEAR},
            "layer_types is ('linear_attention', 'full_attention'), which no model with altup_num_inputs 3 has.",
        ),
    ],
)
def test_what_several_streams_need_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        replace(CONFIG, **changes)
    assert message in str(raised.value)
