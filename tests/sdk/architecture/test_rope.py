"""Position tables against transformers' own functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgelm.architecture.rope import cos_sin_tables, inverse_frequencies, sinusoidal_table
from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig

LENGTH = 2048
SCALINGS = {
    "default": RopeScaling(),
    "linear": RopeScaling(rope_type="linear", factor=4.0),
    "llama3": RopeScaling(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256
    ),
    "llama3 of 3.2": RopeScaling(rope_type="llama3", factor=32.0, original_max_position_embeddings=8192),
    "yarn": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=512),
    "yarn with its own factor": RopeScaling(
        rope_type="yarn", factor=2.5, original_max_position_embeddings=128, attention_factor=1.3, beta_fast=16.0
    ),
    "yarn, ramp not truncated": RopeScaling(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=512, truncate=False
    ),
    "yarn whose original context is under one turn": RopeScaling(
        rope_type="yarn", factor=2.0, original_max_position_embeddings=4, beta_fast=32.0, beta_slow=1.0
    ),
}


def model_config(scaling: RopeScaling, *, head_dim: int = 64, theta: float = 10000.0) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=16,
        hidden_size=128,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=16384,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def transformers_config(config: ModelConfig) -> LlamaConfig:
    scaling = config.rope_scaling
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": (
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"
        ),
        "dynamic": ("factor",),
        "longrope": (
            "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
        ),
    }[scaling.rope_type]  # fmt: skip
    rope = {"rope_type": scaling.rope_type, "rope_theta": config.rope_theta} | {k: getattr(scaling, k) for k in keys}
    return LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        # The length that "dynamic" counts from is this one in transformers.
        max_position_embeddings=(
            scaling.original_max_position_embeddings
            if scaling.rope_type == "dynamic"
            else config.max_position_embeddings
        ),
        rope_parameters=rope | {"partial_rotary_factor": config.partial_rotary_factor},
    )


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_inverse_frequencies_are_those_of_transformers(name: str, head_dim: int, theta: float) -> None:
    config = model_config(SCALINGS[name], head_dim=head_dim, theta=theta)
    theirs = transformers_config(config)
    compute = ROPE_INIT_FUNCTIONS.get(
        config.rope_scaling.rope_type, LlamaRotaryEmbedding.compute_default_rope_parameters
    )
    expected, expected_factor = compute(theirs)

    frequencies, factor = inverse_frequencies(config)

    assert frequencies.dtype == np.float32
    assert frequencies.shape == (head_dim // 2,)
    assert factor == expected_factor
    # Measured: 3.6e-7, three units in the last place, where llama3 blends; 1.2e-7 elsewhere.
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_cos_sin_tables_are_those_of_transformers(name: str) -> None:
    config = model_config(SCALINGS[name])
    rotary = LlamaRotaryEmbedding(transformers_config(config))
    cos_expected, sin_expected = rotary(torch.zeros(1), torch.arange(LENGTH)[None])

    cos, sin = cos_sin_tables(config, LENGTH)

    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (LENGTH, config.head_dim // 2)
    # Measured: 4e-5. One unit in the last place of a frequency is 1.2e-4 of an angle near 2,000.
    np.testing.assert_allclose(cos, cos_expected[0, :, : config.head_dim // 2].numpy(), atol=2e-4)
    np.testing.assert_allclose(sin, sin_expected[0, :, : config.head_dim // 2].numpy(), atol=2e-4)


@pytest.mark.parametrize("part", [1.0, 0.75])
@pytest.mark.parametrize("attention_factor", [None, 1.25])
def test_longrope_turns_a_long_text_by_other_frequencies(attention_factor: float | None, part: float) -> None:
    pairs = int(32 * part)
    scaling = RopeScaling(
        rope_type="longrope",
        factor=16.0,
        original_max_position_embeddings=1024,
        attention_factor=attention_factor,
        short_factor=tuple(np.linspace(1, 1.5, pairs).tolist()),
        long_factor=tuple(np.linspace(1, 60, pairs).tolist()),
    )
    config = replace(model_config(RopeScaling()), rope_scaling=scaling, partial_rotary_factor=part)

    cos, sin = cos_sin_tables(config, LENGTH)

    assert cos.shape == (2 * LENGTH, pairs)
    for length, first in ((1024, 0), (1025, LENGTH)):  # fresh, since theirs remembers
        rotary = LlamaRotaryEmbedding(transformers_config(config))
        for ours, theirs in zip((cos, sin), rotary(torch.zeros(1), torch.arange(length)[None]), strict=True):
            # Measured: 6.2e-5, as above.
            np.testing.assert_allclose(ours[first : first + length], theirs[0, :, :pairs].numpy(), atol=2e-4)


def test_dynamic_turns_each_position_as_the_last_of_a_text() -> None:
    scaling = RopeScaling(rope_type="dynamic", factor=4.0, original_max_position_embeddings=64)
    config = model_config(scaling)

    cos, sin = cos_sin_tables(config, 200)

    rotary = LlamaRotaryEmbedding(transformers_config(config))
    for position in (0, 63, 64, 65, 150, 199):  # as decoding goes
        cos_expected, sin_expected = rotary(torch.zeros(1), torch.tensor([[position]]))
        # Measured: 1.2e-5. Theirs has the base in float32.
        np.testing.assert_allclose(cos[position], cos_expected[0, 0, :32].numpy(), atol=1e-4)
        np.testing.assert_allclose(sin[position], sin_expected[0, 0, :32].numpy(), atol=1e-4)


def test_layers_with_a_window_may_turn_by_a_base_of_their_own_unscaled() -> None:
    config = replace(model_config(SCALINGS["linear"], theta=1e6), rope_local_theta=1e4)
    unscaled = model_config(RopeScaling(), theta=1e4)

    for local, expected in zip(cos_sin_tables(config, 50, "local"), cos_sin_tables(unscaled, 50), strict=True):
        np.testing.assert_array_equal(local, expected)


def test_the_sinusoidal_table_is_the_papers_formula() -> None:
    config = model_config(RopeScaling())

    table = sinusoidal_table(config, 6)

    assert table.dtype == np.float32
    assert table.shape == (6, 128)
    assert table[0, :4].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert table[5, 0] == pytest.approx(math.sin(5.0))
    assert table[5, 1] == pytest.approx(math.cos(5.0))
    assert table[3, 126] == pytest.approx(math.sin(3 / 10000 ** (126 / 128)))
    assert table[3, 127] == pytest.approx(math.cos(3 / 10000 ** (126 / 128)))
