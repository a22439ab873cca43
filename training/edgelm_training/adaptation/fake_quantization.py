"""Fake quantization: a model that computes with weights on MatMulNBits' grid, while the weights behind them learn.

Each matrix that a precision of the exporter stores as integers is rounded to its grid wherever it is read, a tied
embedding once for both of its uses, and the gradient passes through the rounding as if it were not there (the
straight-through estimator, arXiv:1308.3432; for language models arXiv:2305.17888). What is saved for export are the
weights on the grid, in floats: the exporter finds them on it and packs them without rounding again.

Shapes: N rows, K columns; blocks along the columns, then the block's own weights: [N, blocks, block_size].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from edgelm.architecture.block_grid import Array, outermost_grid, searched_grid
from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.quantization_recipe import PRECISIONS, QUANTIZED, Precision, integer_scheme_for, read_recipe
from edgelm.architecture.quantization_scheme import Scheme
from edgelm.config import ModelConfig
from edgelm_training.adaptation.quantized_linear import pieces_in_blocks
from edgelm_training.model import Transformer
from edgelm_training.settings.settings import SettingError

# Where torch's parametrizations keep what a module's weight is made of.
_WEIGHT, _SHARES = ".parametrizations.weight.original", ".parametrizations.weight.0.shares"
# Matrices that a graph holds in floats whatever a precision says.
_PLAIN = ("embed_positions", "relative_attention_bias")


def quantized_precision(name: str) -> Precision:
    """Return what `--qat` names: a preset of the exporter with integers, or a recipe file.

    Of a preset without its transforms: the exporter leaves weights that lie on its grid already where they are.

    Raises:
        ConfigError: it is neither, or has no integers.
        ExportError: the file is no recipe.
    """
    precision = PRECISIONS.get(name)
    if precision is not None:
        precision = dataclasses.replace(precision, transforms=())
    elif Path(name).suffix.lower() in (".toml", ".json"):
        precision = read_recipe(Path(name))
    if precision is None or not precision.schemes or precision.transforms:
        raise SettingError(
            f"qat is {name!r}; it must be one of {', '.join(QUANTIZED)}, or a recipe file (.toml, .json) with "
            "integers and without transforms, which would move the weights off their grid."
        )
    return precision


def schemes_of(config: ModelConfig, precision: Precision) -> dict[str, Scheme]:
    """Return the schemes of the matrices that a precision stores as integers, by the names of their modules.

    Raises:
        ConfigError: the exporter folds a factor into weights of this model, which moves them off their grid; it has no
            such grid for the embedding; or the model has experts.
    """
    if config.residual_multiplier != 1:
        raise SettingError(
            f"qat is set, and the model's residual_multiplier is {config.residual_multiplier}: the exporter folds it "
            "into the weights, which leaves them beside the grid that they were trained on. Train without qat."
        )
    if config.multipliers != Multipliers():
        raise SettingError(
            "qat is set, and the model has multipliers of its projections: the exporter folds them into the weights, "
            "which leaves those beside the grid that they were trained on. Train without qat."
        )
    if config.num_experts:
        raise SettingError(
            f"qat is set, and the model has {config.num_experts} experts, whose matrices cannot be trained on a grid "
            "yet. Train without qat."
        )
    recipe = precision.recipe(config)
    found = {}
    for name, shape in config.tensor_shapes().items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(shape) != 2 or module.endswith(_PLAIN):
            continue
        scheme = integer_scheme_for(recipe, name)
        if scheme is None:
            continue
        if "embed_tokens" in module and (scheme.bits == 2 or not scheme.symmetric):
            raise SettingError(
                f"qat gives the embedding {scheme.bits} bits{'' if scheme.symmetric else ' with zero points'}; the "
                "exporter gathers its rows from a symmetric grid of 4 bits or more. Give embed_tokens a rule of its "
                "own, before the others, such as int8-block64."
            )
        found[module] = scheme
    return found


def train_for(model: Transformer, qat: str | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Add fake quantization for what `--qat` names, if anything; return what makes a checkpoint's weights of a state.

    Raises:
        ConfigError, ExportError: as `quantized_precision` and `schemes_of`.
    """
    if qat is None:
        return lambda weights: weights
    precision = quantized_precision(qat)
    add_fake_quantization(model, precision)
    return partial(weights_on_grid, config=model.config, precision=precision)


def add_fake_quantization(model: Transformer, precision: Precision) -> None:
    """Let a model compute with its matrices on their grids, in training and after it.

    A block's scale goes with its outermost weights, as these learn; by what share it is smaller or larger is searched
    at the beginning, as the exporter does.

    Raises:
        ConfigError: the exporter folds a factor into weights of this model.
    """
    for name, scheme in schemes_of(model.config, precision).items():
        module = model.get_submodule(name)
        parametrize.register_parametrization(module, "weight", FakeQuantization(module.weight, scheme))  # type: ignore[arg-type]


def weights_on_grid(weights: Mapping[str, Tensor], config: ModelConfig, precision: Precision) -> dict[str, Tensor]:
    """Return the weights that a model with fake quantization computes with, under canonical names, in their order.

    weights: its `state_dict()`, with whole tensors on the CPU.
    """
    schemes = schemes_of(config, precision)
    found = {}
    for name in config.tensor_shapes():
        module = name.removesuffix(".weight")
        if module in schemes:
            weight, shares = weights[module + _WEIGHT], weights[module + _SHARES]
            found[name] = on_grid(weight, shares, schemes[module])
        else:
            found[name] = weights[name]
    return found


class FakeQuantization(nn.Module):
    """Round a weight to its grid; a parametrization of `torch.nn.utils.parametrize`.

    shares: float32 [N, blocks], each block's scale as a part of the one that just holds its outermost weights.
    """

    shares: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        shares = _searched_shares(weight.detach().float().cpu().numpy(), scheme)
        self.register_buffer("shares", torch.from_numpy(shares).to(weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight [N, K] on its grid."""
        return _StraightThrough.apply(weight, self)  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantization: FakeQuantization) -> Tensor:
        return on_grid(weight, quantization.shares, quantization.scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def on_grid(weight: Tensor, shares: Tensor, scheme: Scheme) -> Tensor:
    """Return the weight [N, K] rounded to the grid of a scheme whose scales are `shares` of the outermost ones."""
    steps, scales = steps_and_scales(weight, shares, scheme)
    return (steps * scales[..., None]).flatten(1)[:, : weight.shape[1]].contiguous()


def steps_and_scales(weight: Tensor, shares: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return integers (less their zero points) [N, blocks, block_size] and scales [N, blocks]: `on_grid` in its parts.

    Scales are rounded as the exporter stores them, to float16 where it holds them, which makes each product of a scale
    and an integer exact: the same on every device, and recognized by `edgelm.architecture.block_grid.exact_grid`.
    """
    K = weight.shape[1]
    blocks = functional.pad(weight, (0, -K % scheme.block_size)).reshape(len(weight), -1, scheme.block_size)
    low, high = blocks.amin(-1), blocks.amax(-1)
    top, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    if not scheme.symmetric:
        low, high = low.clamp(max=0), high.clamp(min=0)
        outermost = _nonzero((high - low) / top)
        zeros = (-low / outermost).round().clamp(0, top)
    elif scheme.bits == 8:
        outermost = _nonzero(torch.maximum(high, -low) / (middle - 1))
        zeros = torch.full_like(outermost, middle)
    else:
        outermost = _nonzero(torch.where(high > -low, high, low) / -middle)
        zeros = torch.full_like(outermost, middle)
    scales = _short(outermost * shares)
    return (blocks / scales[..., None]).round().clamp(-zeros[..., None], top - zeros[..., None]), scales


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1, scales)


def _short(scales: Tensor) -> Tensor:
    """Round to float16, beyond its normal range to 16 significant bits: times an integer of 8 bits, both are exact."""
    scales = scales.float()
    halves = scales.half().float()
    normal = (halves.abs() >= torch.finfo(torch.float16).smallest_normal) & halves.isfinite()
    return torch.where(normal, halves, ((scales.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32))


def _searched_shares(weight_NK: Array, scheme: Scheme) -> Array:
    """Return the shares [N, blocks] of the exporter's search; 8 bits are rounded on the outermost grid itself."""
    N, K = weight_NK.shape
    if scheme.bits == 8:
        return np.ones((N, -(-K // scheme.block_size)), np.float32)
    shares = []
    for blocks in pieces_in_blocks(weight_NK, scheme.block_size):
        shares.append(np.abs(searched_grid(blocks, scheme).scales / outermost_grid(blocks, scheme).scales))
    return np.concatenate(shares)
