"""Position tables: rotary frequencies with their scalings, and the fixed sinusoids of the first Transformer.

Both implementations of the model read them: PyTorch in training, and the ONNX exporter, whose graph makes the tables of
the frequencies when it is loaded. Frequencies and angles are rounded to float32 where transformers rounds them: an
angle at position 8,000 is off by up to 2**-12, so exact ones would give other logits than the weights were trained for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig

Float32Array = NDArray[np.float32]

# Bytes of one table of a graph: a million positions of heads of 128. ONNX Runtime is let make constants of this size.
LARGEST_TABLE = 1 << 28


def inverse_frequencies(config: ModelConfig, kind: str = "global", *, long: bool = False) -> tuple[Float32Array, float]:
    """Return the rotary frequencies [R/2] in radians per position, and the factor that multiplies cos and sin.

    R is `config.rotary_width` of the kind. Dimension i turns with dimension i + R/2 (halves, not neighbours), slowest
    last (arXiv:2104.09864). kind: `config.rope_kind` of the layer. long: LongRoPE's frequencies for a text that is
    longer than the original context. `dynamic` has these frequencies within the original context alone.
    """
    if kind == "local":
        return np.float32(1.0) / _powers(config.rope_local_theta or config.rope_theta, config.rotary_width(kind)), 1.0
    scaling, powers = config.rope_scaling, _powers(config.rope_theta, config.rotary_width(kind))
    frequencies: Float32Array = np.float32(1.0) / powers
    if scaling.rope_type in ("linear", "proportional"):
        frequencies[config.turning_dim(kind) // 2 :] = 0
        return frequencies / np.float32(scaling.factor), 1.0
    if scaling.rope_type == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(frequencies, config.rope_theta, scaling), _attention_factor(scaling)
    if scaling.rope_type == "longrope":
        factors = np.array(scaling.long_factor if long else scaling.short_factor, np.float32)
        return np.float32(1.0) / (factors * powers), _attention_factor(scaling)
    return frequencies, 1.0


def _powers(theta: float | NDArray[np.float64], rotary_dim: int) -> Float32Array:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    # A float64 power, rounded once, is what torch's float32 power gives; numpy's float32 power differs in the last bit
    # for one frequency in eight, which moves an angle at position 2,000 by 1e-4.
    powers: Float32Array = (theta ** exponents.astype(np.float64)).astype(np.float32)
    return powers


def _dynamic(config: ModelConfig, length: int) -> Float32Array:
    """Return the frequencies [length, R/2] of each position: beyond the original context the base grows (NTK).

    Each position turns as the last one of a text that ends there. So a token that is decoded has transformers'
    frequencies, and a prompt gives the same logits in one piece and in chunks; transformers turns all positions of a
    prompt that is longer than the original context as its last one.
    """
    scaling, R = config.rope_scaling, config.rotary_width("global")
    original = scaling.original_max_position_embeddings
    seen = np.maximum(np.arange(1, length + 1), original)
    thetas = config.rope_theta * (scaling.factor * seen / original - (scaling.factor - 1)) ** (R / (R - 2))
    return np.float32(1.0) / _powers(thetas[:, None], R)


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

    first, last = dimension_that_turns(scaling.beta_fast), dimension_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    width = last - first or 0.001  # a ramp of no width is a step
    slowed: Float32Array = np.clip((np.arange(half, dtype=np.float32) - np.float32(first)) / np.float32(width), 0, 1)
    return slowed * frequencies / np.float32(scaling.factor) + (1 - slowed) * frequencies


def _attention_factor(scaling: RopeScaling) -> float:
    """Sharpen attention over a longer context, at any length of the text: cos and sin grow, so logits grow by the
    square (YaRN: arXiv:2309.00071, 3.4; LongRoPE: arXiv:2402.13753, 3.3).
    """
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.rope_type == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))


def table_frequencies(config: ModelConfig, length: int, kind: str) -> tuple[Float32Array, float]:
    """Return the frequencies [G, 1 or length, R/2] of G tables, and the factor that multiplies cos and sin.

    G is 2 with LongRoPE: as a text within the original context turns, then as a longer one. `dynamic` has frequencies
    for each position.
    """
    frequencies, attention_factor = inverse_frequencies(config, kind)
    if kind == "global" and config.rope_scaling.rope_type == "dynamic":
        return _dynamic(config, length)[None], attention_factor
    tables = [frequencies]
    if has_long_table(config, kind):
        tables.append(inverse_frequencies(config, kind, long=True)[0])
    return np.stack(tables)[:, None], attention_factor


def cos_sin_tables(config: ModelConfig, length: int, kind: str = "global") -> tuple[Float32Array, Float32Array]:
    """Return cos and sin, each [G * length, R/2], of every position's rotation, with the attention factor in them.

    With LongRoPE there are two tables, one behind the other (`table_frequencies`).
    """
    frequencies, attention_factor = table_frequencies(config, length, kind)
    positions_T1 = np.arange(length, dtype=np.float32)[:, None]
    angles = (positions_T1 * frequencies).reshape(-1, frequencies.shape[-1])
    return np.cos(angles) * np.float32(attention_factor), np.sin(angles) * np.float32(attention_factor)


def query_factors(config: ModelConfig, positions: NDArray[np.integer]) -> Float32Array:
    """Return what queries at these positions are multiplied by: 1 + beta * log(1 + original contexts before them).

    So scores do not flatten as a text grows (Llama 4's attention temperature, as Ministral 3 has it).
    """
    contexts = positions // config.rope_scaling.original_max_position_embeddings
    factors: Float32Array = 1 + np.float32(config.llama_4_scaling_beta or 0) * np.log1p(contexts.astype(np.float32))
    return factors


def has_long_table(config: ModelConfig, kind: str) -> bool:
    """Tell whether the tables of this kind of layer hold a second half, for texts beyond the original context."""
    return kind == "global" and config.short_context is not None


def sinusoidal_table(config: ModelConfig, length: int) -> Float32Array:
    """Return the fixed position embeddings [length, D]: even columns sin, odd ones cos (arXiv:1706.03762, 3.5).

    The position "sinusoidal_halves" has the even columns before the odd ones (Marian), and "sinusoidal_fairseq" angles
    and places of its own (M2M100); the last of an odd number of columns is zero there.
    """
    if config.position == "sinusoidal_fairseq":
        half = config.hidden_size // 2
        angles = np.arange(2, length + 2)[:, None] / 10000.0 ** (np.arange(half) / max(1, half - 1))
        table = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
        return np.pad(table, ((0, 0), (0, config.hidden_size % 2))).astype(np.float32)
    columns = np.arange(config.hidden_size)
    if config.position == "sinusoidal_halves":
        columns = np.concatenate((columns[::2], columns[1::2]))
    angles = np.arange(length)[:, None] / 10000.0 ** (2 * (columns // 2) / config.hidden_size)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
