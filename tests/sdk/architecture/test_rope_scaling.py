"""RopeScaling: what its settings may be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.errors import ConfigError

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": (1.0,), "long_factor": (2.0,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_type": "axial"},
            "rope_type is 'axial'; supported: default, linear, dynamic, llama3, yarn, longrope, proportional.",
        ),
        (
            {"rope_type": "proportional", "partial_rotary_factor": 0.0},
            "The rope's partial_rotary_factor is 0.0; it must be above 0, up to 1.",
        ),
        ({"rope_type": "dynamic"}, "rope_type 'dynamic' needs original_max_position_embeddings."),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 8, "short_factor": (1.0,)},
            "rope_type 'longrope' needs short_factor and long_factor, each a list of numbers above 0.",
        ),
        ({"rope_type": "linear", "factor": 0.5}, "The rope factor is 0.5; it must be a number of 1.0 or more."),
        ({"rope_type": "linear", "factor": math.nan}, "The rope factor is nan; it must be a number of 1.0 or more."),
        ({"rope_type": "linear", "factor": math.inf}, "The rope factor is inf; it must be a number of 1.0 or more."),
        ({"rope_type": "linear", "factor": "4"}, "The rope factor is '4'; it must be a number of 1.0 or more."),
        (
            YARN | {"original_max_position_embeddings": 10**400},
            "original_max_position_embeddings is a number of 1329 bits; it must be a whole number from 0 to "
            "2147483647.",
        ),
        (
            YARN | {"original_max_position_embeddings": 1.5},
            "original_max_position_embeddings is 1.5; it must be a whole number from 0 to 2147483647.",
        ),
        (
            YARN | {"beta_fast": 1e308},
            "beta_slow is 1.0 and beta_fast is 1e+308; both must be numbers above 0, and the first below the second.",
        ),
        (YARN | {"truncate": "no"}, "truncate is 'no'; it must be true or false."),
        (
            LONGROPE | {"original_max_position_embeddings": 1},
            "original_max_position_embeddings is 1; rope_type 'longrope' needs 2 or more, or an attention_factor.",
        ),
        (
            LONGROPE | {"long_factor": (math.inf,)},
            "rope_type 'longrope' needs short_factor and long_factor, each a list of numbers above 0.",
        ),
        ({"rope_type": "llama3"}, "rope_type 'llama3' needs original_max_position_embeddings."),
        ({"rope_type": "yarn"}, "rope_type 'yarn' needs original_max_position_embeddings."),
        (
            {"low_freq_factor": 4.0},
            "low_freq_factor is 4.0 and high_freq_factor is 4.0; both must be numbers above 0, and the first below the "
            "second.",
        ),
        (
            {"beta_slow": 0.0},
            "beta_slow is 0.0 and beta_fast is 32.0; both must be numbers above 0, and the first below the second.",
        ),
        ({"attention_factor": math.inf}, "attention_factor is inf; it must be a number above 0."),
        ({"attention_factor": 0.0}, "attention_factor is 0.0; it must be a number above 0."),
    ],
)
def test_a_rope_scaling_outside_its_range_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RopeScaling(**fields)
    assert str(caught.value) == message


def test_an_original_context_of_one_token_may_have_a_factor_of_its_own() -> None:
    assert RopeScaling(**LONGROPE | {"original_max_position_embeddings": 1, "attention_factor": 1.5}).factor == 1.0
