"""Settings of scaled ropes, in the words of different releases."""

from __future__ import annotations

import numpy as np
import pytest
from config_values import SIZES, model_config
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgelm.architecture.rope import inverse_frequencies
from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.architectures import ARCHITECTURES


def test_older_names_of_longrope_mean_it() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2] * 8}
    for name in ("su", "yarn", "longrope"):
        config = ARCHITECTURES["phi3"].to_model_config(
            SIZES | {"max_position_embeddings": 131072, "rope_scaling": {"type": name, **factors}}
        )
        assert config.rope_scaling == RopeScaling(
            rope_type="longrope",
            factor=32.0,
            original_max_position_embeddings=4096,
            short_factor=(1.0,) * 8,
            long_factor=(2.0,) * 8,
        )


def test_an_older_name_of_sarvams_yarn_is_read_as_transformers_reads_it() -> None:
    """As sarvam-105b is published, which also calls the numbers of its experts otherwise."""
    named = {"type": "deepseek_yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 0.7, "rope_theta": 1e4}
    named |= {"original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
    theirs = AutoConfig.for_model("sarvam_mla", rope_scaling=named, num_experts=16, num_shared_experts=2)
    row, given = (
        ARCHITECTURES["sarvam_mla"],
        SIZES | {"rope_scaling": named, "num_experts": 16, "num_shared_experts": 2},
    )
    written = theirs.to_dict()
    sizes = {key: written[key] for key in SIZES}
    assert row.to_model_config(given | sizes) == row.to_model_config(written)
    assert row.to_model_config(written).rope_scaling.rope_type == "yarn"


def test_what_longrope_says_of_itself_comes_before_what_follows_from_the_contexts() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    longrope = {"rope_type": "longrope", "type": "linear", "factor": 8.0, "attention_factor": 1.2, **factors}
    scaling = model_config(rope_scaling=longrope).rope_scaling
    assert (scaling.rope_type, scaling.factor, scaling.attention_factor) == ("longrope", 8.0, 1.2)
    shorter = {"original_max_position_embeddings": 4096, "max_position_embeddings": 2048}
    assert model_config(rope_scaling={"type": "longrope", **factors}, **shorter).rope_scaling.factor == 1.0


def test_a_dynamic_scaling_multiplies_the_context() -> None:
    config = model_config(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=512)
    assert config.max_position_embeddings == 1024
    assert config.rope_scaling == RopeScaling(rope_type="dynamic", factor=2.0, original_max_position_embeddings=512)
    with pytest.raises(ConfigError, match=r"rope factor is 1e\+308; it must be a number of 1\.0 or more"):
        model_config(rope_scaling={"type": "dynamic", "factor": 1e308}, max_position_embeddings=512)


def test_two_scales_of_yarn_stand_for_the_ratio_of_their_factors() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.4, "truncate": False}
    scaling = model_config(rope_scaling=yarn).rope_scaling
    assert scaling.attention_factor == pytest.approx((0.07 * np.log(4) + 1) / (0.14 * np.log(4) + 1))
    assert not scaling.truncate
    assert model_config(rope_scaling=yarn | {"attention_factor": 1.5}).rope_scaling.attention_factor == 1.5


def test_a_factor_of_yarns_attention_multiplies_what_follows_from_the_rest() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}  # DeepSeek-R1-0528-Qwen3-8B's
    assert model_config(rope_scaling=yarn).rope_scaling.attention_factor == pytest.approx(1.0)
    assert model_config(rope_scaling=yarn | {"attention_factor": 1.5}).rope_scaling.attention_factor == 1.5


def test_a_yarn_without_a_factor_stretches_its_original_context_to_the_whole() -> None:
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 256, "rope_theta": 1e4}
    sizes = SIZES | {"model_type": "llama", "max_position_embeddings": 1024}
    theirs = LlamaConfig(**sizes, rope_parameters=yarn)
    ours = model_config(rope_parameters=yarn, max_position_embeddings=1024)
    frequencies, attention_factor = inverse_frequencies(ours)
    expected, their_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, None)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6, atol=0)
    assert (ours.rope_scaling.factor, attention_factor) == (4.0, their_factor)


def test_apertus_turns_by_its_own_base_where_a_scaling_has_none() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    sizes = SIZES | {"model_type": "apertus", "rope_scaling": scaling}
    ours = ARCHITECTURES["apertus"].to_model_config(sizes)
    assert ours.rope_theta == AutoConfig.for_model(**sizes).rope_parameters["rope_theta"]


def test_a_negative_scale_of_yarn_is_refused() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "mscale": -1.0, "mscale_all_dim": 1.0}
    with pytest.raises(CheckpointError, match=r"mscale and mscale_all_dim are \[-1.0, 1.0\]; they must be 0 or more"):
        model_config(rope_scaling=yarn)
