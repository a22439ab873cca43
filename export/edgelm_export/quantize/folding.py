"""Folding: scales of channels moved from a projection's inputs into its weight, so that both are easier to quantize.

What makes the inputs (a norm, or another projection) is divided by the scales, and the projections that read them are
multiplied by the same: the model stays what it was, and nothing is added at run time. SmoothQuant (arXiv:2211.10438)
chooses scales that even out activations and weights; AWQ (arXiv:2306.00978) those that leave the smallest error.
Shapes: K input channels, N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_scheme import Scheme
from edgelm.config import NORM_PLACEMENTS, ModelConfig
from edgelm_export.quantize.gptq import output_error
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.statistics import InputStatistics, LayerStatistics

Array = NDArray[np.float32]
Weights = dict[str, Array]
# The scheme of a projection, such as "mlp.up_proj"; None for one that stays in floats.
SchemeOf = Callable[[str], Scheme | None]

_SMOOTH_SHARE = np.float32(0.5)  # SmoothQuant's alpha, the authors' default
_AWQ_SHARES = tuple(np.float32(share) for share in np.arange(0.1, 1.0, 0.1))
_FLOOR = np.float32(1e-5)


def fold(
    transform: str, config: ModelConfig, weights: Mapping[str, Array], statistics: LayerStatistics, scheme_of: SchemeOf
) -> tuple[Weights, LayerStatistics]:
    """Fold scales into one layer's tensors; return them, and the statistics of the inputs as they are then.

    transform: "smooth" or "awq". Groups whose maker is not linear in its output are left as they are.
    """
    folded = dict(weights)
    changed = LayerStatistics(of_module=dict(statistics.of_module))
    choose = CHOICES[transform]
    for maker, readers, of_heads in _groups(config, weights, statistics):
        read = changed.of_module[readers[0]]
        scales = choose({reader: folded[f"{reader}.weight"] for reader in readers}, read, scheme_of)
        if of_heads:
            # The query heads that share a value head read the same rows of it.
            grouped_KGH = scales.reshape(config.num_key_value_heads, -1, config.head_dim)
            per_head_KH = np.exp(np.log(grouped_KGH).mean(1))
            scales = np.broadcast_to(per_head_KH[:, None], grouped_KGH.shape).reshape(-1)
            _divide_rows(config, folded, maker, per_head_KH.reshape(-1))
        else:
            _divide_rows(config, folded, maker, scales)
        divided = read.divided(scales)
        for reader in readers:
            folded[f"{reader}.weight"] = folded[f"{reader}.weight"] * scales
            changed.of_module[reader] = divided
    return folded, changed


def _groups(
    config: ModelConfig, weights: Mapping[str, Array], statistics: LayerStatistics
) -> list[tuple[str, list[str], bool]]:
    """List what can be folded: the maker of an input, the projections that read it, and whether it is value heads."""
    groups: list[tuple[str, list[str], bool]] = []
    before_attention, _, before_feed_forward, _ = NORM_PLACEMENTS[config.norm_placement]
    for reader, norm in (("self_attn.q_proj", before_attention), ("mlp.up_proj", before_feed_forward)):
        taken = [reader for _, readers, _ in groups for reader in readers]
        if norm is not None and f"{norm}.weight" in weights and reader in statistics.of_module and reader not in taken:
            groups.append((norm, statistics.sharing(reader), False))
    if "self_attn.o_proj" in statistics.of_module and "self_attn.v_proj.weight" in weights:
        groups.append(("self_attn.v_proj", ["self_attn.o_proj"], True))
    if config.mlp_gated and "mlp.down_proj" in statistics.of_module:
        groups.append(("mlp.up_proj", ["mlp.down_proj"], False))
    return groups


def _divide_rows(config: ModelConfig, weights: Weights, maker: str, scales: Array) -> None:
    weight = weights[f"{maker}.weight"]
    if weight.ndim == 2:
        weights[f"{maker}.weight"] = weight / scales[:, None]
    else:
        # A norm of kind rms_offset multiplies by 1 + weight.
        offset = np.float32(config.norm == "rms_offset")
        weights[f"{maker}.weight"] = (weight + offset) / scales - offset
    if f"{maker}.bias" in weights:
        weights[f"{maker}.bias"] = weights[f"{maker}.bias"] / scales


def _smooth(readers: Mapping[str, Array], read: InputStatistics, scheme_of: SchemeOf) -> Array:
    weight_K = np.max([np.abs(weight).max(0) for weight in readers.values()], axis=0)
    return _evened(read.largest_K, weight_K, _SMOOTH_SHARE)


def _awq(readers: Mapping[str, Array], read: InputStatistics, scheme_of: SchemeOf) -> Array:
    best, least = np.ones_like(read.mean_K), np.inf
    ones = np.ones_like(read.mean_K)
    for scales in (ones, *(_evened(read.mean_K, ones, share) for share in _AWQ_SHARES)):
        error = 0.0
        for reader, weight in readers.items():
            scheme = scheme_of(reader)
            if scheme is not None:
                rounded = unpack(quantize_alone(weight * scales, dataclasses.replace(scheme, method="rounded")))
                error += output_error(rounded / scales - weight, read.hessian_KK)
        if error < least:
            best, least = scales, error
    return best


CHOICES: dict[str, Callable[[Mapping[str, Array], InputStatistics, SchemeOf], Array]] = {"smooth": _smooth, "awq": _awq}


def _evened(input_K: Array, weight_K: Array, share: np.float32) -> Array:
    """Return input ** share / weight ** (1 - share) for each channel, around one in the middle of their range."""
    scales = np.maximum(input_K, _FLOOR) ** share / np.maximum(weight_K, _FLOOR) ** (1 - share)
    return np.asarray(scales / np.sqrt(scales.max() * scales.min()), np.float32)
