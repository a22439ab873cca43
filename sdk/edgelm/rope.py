"""Position tables: rotary frequencies with their scalings, and the fixed sinusoids of the first Transformer.

Both implementations of the model read them: PyTorch in training, and the ONNX exporter, which bakes them into the
graph. Frequencies and angles are rounded to float32 where transformers rounds them: an angle at position 8,000 is off
by up to 2**-12, so exact ones would give other logits than the weights were trained with.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig, RopeScaling

Float32Array = NDArray[np.float32]


def inverse_frequencies(config: ModelConfig) -> tuple[Float32Array, float]:
    """Return the rotary frequencies [H/2] in radians per position, and the factor that multiplies cos and sin.

    Dimension i turns with dimension i + H/2 (the halves of a head, not neighbours), slowest last (arXiv:2104.09864).
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # A float64 power, rounded once, is what torch's float32 power gives; numpy's float32 power differs in the last bit
    # for one frequency in eight, which moves an angle at position 2,000 by 1e-4.
    powers = (config.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies: Float32Array = np.float32(1.0) / powers
    scaling = config.rope_scaling
    if scaling.rope_type == "linear":
        return frequencies / np.float32(scaling.factor), 1.0
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(frequencies, config.rope_theta, scaling), _yarn_attention_factor(scaling)
    return frequencies, 1.0


def _llama3(frequencies: Float32Array, scaling: RopeScaling) -> Float32Array:
    """Slow down by `factor` what turns too slowly to have come round in the original context (Llama 3.1)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # How often each frequency came round: under `low` turns it is slowed down, above `high` it is kept.
    turns = np.float32(scaling.original_max_position_embeddings) / (np.float32(2 * math.pi) / frequencies)
    kept: Float32Array = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / np.float32(scaling.factor)


def _yarn(frequencies: Float32Array, theta: float, scaling: RopeScaling) -> Float32Array:
    """Blend kept and slowed-down frequencies over a ramp between two numbers of turns (arXiv:2309.00071, 3.2)."""
    half = len(frequencies)
    context = scaling.original_max_position_embeddings

    def dimension_that_turns(times: float) -> float:
        return half * math.log(context / (times * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(dimension_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(dimension_that_turns(scaling.beta_slow)), 2 * half - 1)
    width = last - first or 0.001  # a ramp of no width is a step
    slowed: Float32Array = np.clip((np.arange(half, dtype=np.float32) - np.float32(first)) / np.float32(width), 0, 1)
    return slowed * frequencies / np.float32(scaling.factor) + (1 - slowed) * frequencies


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """Sharpen attention over a longer context: cos and sin grow, so logits grow by the square (ibid., 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def cos_sin_tables(config: ModelConfig, length: int) -> tuple[Float32Array, Float32Array]:
    """Return cos and sin, each [length, H/2], of every position's rotation, with the attention factor in them."""
    frequencies, attention_factor = inverse_frequencies(config)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles) * np.float32(attention_factor), np.sin(angles) * np.float32(attention_factor)


def sinusoidal_table(config: ModelConfig, length: int) -> Float32Array:
    """Return the fixed position embeddings [length, D]: even columns sin, odd ones cos (arXiv:1706.03762, 3.5)."""
    columns = np.arange(config.hidden_size)
    angles = np.arange(length)[:, None] / 10000.0 ** (2 * (columns // 2) / config.hidden_size)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
