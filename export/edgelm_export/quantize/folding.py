"""Folding: the scales of channels by which both what a projection reads and its weights are easier to quantize.

The source runs once on a text, layer by layer, with one layer and the text's activations in memory. SmoothQuant
(arXiv:2211.10438) chooses scales that even out activations and weights; AWQ (arXiv:2306.00978) those that leave the
smallest error. What becomes of the scales: channel_scales.py.
Shapes: T tokens, D hidden, K input channels, N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from edgelm.architecture.quantization_recipe import Rule, integer_scheme_for
from edgelm.architecture.quantization_scheme import SHORTLIST, Scheme
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checked import Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import head_name
from edgelm_export.quantize.channel_scales import ChannelScales, scaled_channels
from edgelm_export.quantize.gptq import output_error
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.smoothed_head import better_divisors
from edgelm_export.quantize.two_planes import takes_shortlist
from edgelm_export.reference import model as reference
from edgelm_export.reference.weights import Array, ObservedWeights

# The scheme of a projection, such as "mlp.up_proj"; None for one that stays in floats.
SchemeOf = Callable[[str], Scheme | None]

_SMOOTH_SHARE = np.float32(0.5)  # SmoothQuant's alpha, the authors' default
_AWQ_SHARES = tuple(np.float32(share) for share in np.arange(0.1, 1.0, 0.1))
_FLOOR = np.float32(1e-5)
# Folding changes nothing but the order of float32's sums; the largest seen is 3e-6 of the largest activation.
_FOLDING_TOLERANCE = 1e-3
_COMPARED_TOKENS = 64
_ROWS_AT_ONCE = 4096


class Chooser(Protocol):
    """Look at what some projections read, then choose the scales of its channels."""

    def add(self, inputs_TK: Array) -> None: ...  # noqa: D102

    def scales(self, readers: Mapping[str, Array], scheme_of: SchemeOf) -> Array: ...  # noqa: D102


class SmoothQuant:
    """Even out the largest size of each channel and that of the weights that it meets."""

    def __init__(self) -> None:
        self._largest_K: Array | np.float32 = np.float32(0)

    def add(self, inputs_TK: Array) -> None:
        """Take in the inputs of one sequence."""
        self._largest_K = np.maximum(self._largest_K, np.abs(inputs_TK).max(0))

    def scales(self, readers: Mapping[str, Array], scheme_of: SchemeOf) -> Array:
        """Return the scales [K] of the channels that `readers`, weights [N, K], read."""
        weight_K = np.max([np.abs(weight).max(0) for weight in readers.values()], axis=0)
        return _evened(np.asarray(self._largest_K), weight_K, _SMOOTH_SHARE)


class AWQ:
    """Try powers of each channel's mean size, and take the one that leaves the smallest error in the outputs."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sum_K: Array | np.float32 = np.float32(0)
        self._hessian_KK: Array | np.float32 = np.float32(0)

    def add(self, inputs_TK: Array) -> None:
        """Take in the inputs of one sequence."""
        self._tokens += len(inputs_TK)
        self._sum_K += np.abs(inputs_TK).sum(0)
        self._hessian_KK += inputs_TK.T @ inputs_TK

    def scales(self, readers: Mapping[str, Array], scheme_of: SchemeOf) -> Array:
        """Return the scales [K] of the channels that `readers`, weights [N, K], read."""
        mean_K = np.asarray(self._sum_K / np.float32(self._tokens))
        best, least = np.ones_like(mean_K), np.inf
        ones = np.ones_like(mean_K)
        for scales in (ones, *(_evened(mean_K, ones, share) for share in _AWQ_SHARES)):
            error = 0.0
            for reader, weight in readers.items():
                scheme = scheme_of(reader)
                if scheme is not None:
                    rounded = unpack(quantize_alone(weight * scales, dataclasses.replace(scheme, method="rounded")))
                    error += output_error(rounded / scales - weight, np.asarray(self._hessian_KK))
            if error < least:
                best, least = scales, error
        return best


CHOOSERS: dict[str, Callable[[], Chooser]] = {"smooth": SmoothQuant, "awq": AWQ}


def choose_scales(
    checkpoint: Checkpoint,
    transform: str,
    recipe: tuple[Rule, ...],
    sequences: Sequence[Sequence[int]],
    progress: Progress,
) -> ChannelScales:
    """Run a checkpoint on `sequences` of token ids, and choose the scales of its channels.

    transform: a row of CHOOSERS. progress: called with its name, and layers done and in all.

    Raises:
        ExportError: the model has a part that scales cannot be folded into.
    """
    config = checkpoint.config
    run = _Run(config, transform, recipe, reference.position_tables(config, sequences))
    hidden = reference.embed(checkpoint, sequences)
    divisors: dict[str, Array] = {}
    for layer in range(config.num_hidden_layers):
        progress(transform, layer, config.num_hidden_layers)
        chosen, hidden = run.layer(layer, dict(reference.layer_weights(checkpoint, layer)), hidden)
        divisors |= chosen
    name = head_name(config)
    scheme = integer_scheme_for(recipe, name) if transform == "smooth" else None
    head = hessian = None
    if scheme is not None:
        head = _head_divisors(checkpoint, recipe, sequences, hidden)
        if scheme.method == SHORTLIST and takes_shortlist(checkpoint, name, scheme):
            hessian = _head_hessian(checkpoint, head, hidden)
    progress(transform, config.num_hidden_layers, config.num_hidden_layers)
    return ChannelScales(config, divisors, head, hessian)


def _head_hessian(checkpoint: Checkpoint, divisors: Array | None, hidden: Sequence[Array]) -> Array:
    """Return the products [D, D] of what the head's stored weights meet, behind divisors where it has some."""
    divisors = checkpoint.head_divisors if divisors is None else divisors
    read = reference.last_normed(checkpoint, hidden)
    met = read if divisors is None else [read_TD / divisors for read_TD in read]
    return np.asarray(sum(met_TD.T @ met_TD for met_TD in met))


def _head_divisors(
    checkpoint: Checkpoint, recipe: tuple[Rule, ...], sequences: Sequence[Sequence[int]], hidden: Sequence[Array]
) -> Array | None:
    """Choose the scales of what the head reads, by SmoothQuant; None where it has some, or loses less as it is.

    hidden: what left the last layer for each of the sequences.
    """
    name = head_name(checkpoint.config)
    if checkpoint.head_divisors is not None:
        return None
    largest_K = np.max([np.abs(read_TD).max(0) for read_TD in reference.last_normed(checkpoint, hidden)], axis=0)
    head_VD = checkpoint.tensor(name)
    # A part at a time: its sizes alone would be as large again.
    weight_K = np.max([np.abs(head_VD[i : i + _ROWS_AT_ONCE]).max(0) for i in range(0, len(head_VD), _ROWS_AT_ONCE)], 0)
    del head_VD
    ids, hidden_TD = max(zip(sequences, hidden, strict=True), key=lambda pair: len(pair[0]))
    return better_divisors(checkpoint, recipe, _evened(largest_K, weight_K, _SMOOTH_SHARE), ids, hidden_TD)


class _Run:
    def __init__(self, config: ModelConfig, transform: str, recipe: tuple[Rule, ...], tables: reference.Tables) -> None:
        self._config, self._transform, self._recipe, self._tables = config, transform, recipe, tables

    def layer(self, layer: int, weights: dict[str, Array], hidden: list[Array]) -> tuple[dict[str, Array], list[Array]]:
        """Return the scales of a layer by what they divide, and what leaves the layer, [T, D] for each sequence."""
        prefix = f"model.layers.{layer}."

        def scheme_of(module: str) -> Scheme | None:
            return integer_scheme_for(self._recipe, f"{prefix}{module}.weight")

        every = scaled_channels(self._config, layer)
        choosers = {channels.readers[0]: CHOOSERS[self._transform]() for channels in every}

        def observe(module: str, inputs_TK: Array) -> None:
            if module in choosers:
                choosers[module].add(inputs_TK)

        following = self._outputs(layer, ObservedWeights(weights, observe), hidden)
        divisors = {}
        for channels in every:
            readers = {reader: weights[f"{reader}.weight"] for reader in channels.readers}
            scales = choosers[channels.readers[0]].scales(readers, scheme_of)
            if channels.of_heads:
                scales = _of_value_heads(self._config, scales, layer)
            divisors[f"{prefix}{channels.maker}"] = scales
        self._refuse_other_outputs(layer, weights, divisors, hidden[0][:_COMPARED_TOKENS])
        return divisors, following

    def _outputs(self, layer: int, weights: Mapping[str, Array], hidden: list[Array]) -> list[Array]:
        return [reference.run_layer(self._config, layer, weights, hidden_TD, self._tables) for hidden_TD in hidden]

    def _refuse_other_outputs(
        self, layer: int, weights: Mapping[str, Array], divisors: Mapping[str, Array], hidden_TD: Array
    ) -> None:
        scales, prefix = ChannelScales(self._config, divisors), f"model.layers.{layer}."
        folded = {name: scales.applied(f"{prefix}{name}", tensor) for name, tensor in weights.items()}
        (wanted,), (got,) = (self._outputs(layer, each, [hidden_TD]) for each in (weights, folded))
        difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not difference < _FOLDING_TOLERANCE:
            raise ExportError(
                f"{self._transform} would change what layer {layer} computes, by {difference:.2g} of its largest "
                f"output: a {self._config.model_type} model has a part that scales cannot be folded into. Take a "
                "recipe without transforms."
            )


def _of_value_heads(config: ModelConfig, scales: Array, layer: int) -> Array:
    """Return one row of scales for each value head: the geometric mean over the query heads that share it."""
    grouped_KGH = scales.reshape(config.kv_heads(layer), -1, config.head_size(layer))
    return np.asarray(np.exp(np.log(grouped_KGH).mean(1)).reshape(-1), np.float32)


def _evened(input_K: Array, weight_K: Array, share: np.float32) -> Array:
    """Return input ** share / weight ** (1 - share) for each channel, around one in the middle of their range."""
    scales = np.maximum(input_K, _FLOOR) ** share / np.maximum(weight_K, _FLOOR) ** (1 - share)
    return np.asarray(scales / np.sqrt(scales.max() * scales.min()), np.float32)
